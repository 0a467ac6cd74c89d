"""A run on generators that are not there: the real reactor, ledger, pool and rollout service.

What it runs on is a Stage: simulated time here, Ray and actors that sleep in jobs/bench_control.py.
It checks as it goes what must hold whatever fails: every rollout of a step is consumed once, under
versions within the bound, of the incarnation that survives; AssertionError where it does not.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import psutil
from ray.exceptions import ObjectLostError

from rlhf_ray.actors.generator import ShardMeta
from rlhf_ray.data.ids import HELDOUT, TRAIN, RolloutKey, Version, stable_hash
from rlhf_ray.data.prompts import Prompt, batch_of_step
from rlhf_ray.orchestration.ledger import Lease, Ledger
from rlhf_ray.orchestration.lifecycle import State
from rlhf_ray.orchestration.members import Handle
from rlhf_ray.orchestration.pool import GeneratorPool, PoolSettings
from rlhf_ray.orchestration.reactor import Reactor
from rlhf_ray.orchestration.rollouts import Batch, BatchShape, RolloutService
from rlhf_ray.simulation.world import NEVER, Faults, Pace, SimGenerator, SimRef, World
from rlhf_ray.weights.buckets import Published


@dataclass(frozen=True, slots=True)
class Scenario:
    """One simulated run. rescale: {step: generators}. lost_learners: steps lost in learning.

    update: seconds of one update; publish: seconds until a version can be pulled.
    """

    generators: int
    max_staleness: int = 0
    iterations: int = 10
    prompts: int = 64
    samples: int = 1
    shard_prompts: int = 4
    depth: int = 2
    update: float = 10.0
    publish: float = 0.5
    checkpoint_every: int = 2
    evaluate_every: int = 0
    seed: int = 0
    pace: Pace = field(default_factory=Pace)
    faults: Faults = field(default_factory=Faults)
    rescale: dict[int, int] = field(default_factory=dict)
    lost_learners: frozenset[int] = frozenset()
    shard_timeout: float = 200.0
    heartbeat_timeout: float = 20.0
    start_timeout: float = 60.0


@dataclass
class Measured:
    """What a run came to. Seconds are simulated, but for driver_seconds: CPU of the driver's code.

    busy: share of the generators' time, from ready to the end, in which they worked, up to when the
    last step was asked for: afterwards they run out of work, whatever the bound.
    waits: seconds that the learners waited for each step's rollouts. staleness: rows by how many
    versions they were behind. resident: bytes of this process at the end of each iteration.
    """

    seconds: float = 0.0
    driver_seconds: float = 0.0
    busy: float = 0.0
    rows: int = 0
    shards: int = 0
    restarts: int = 0
    waits: list[float] = field(default_factory=list)
    staleness: Counter = field(default_factory=Counter)
    counts: Counter = field(default_factory=Counter)
    resident: list[int] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


class Stage(Protocol):
    """Where a run plays. `scorers` is used as ScorerPools is."""

    reactor: Reactor
    scorers: Any

    def spawn(self, name: str) -> Handle:
        """Make one generator."""

    def later(self, seconds: float) -> Any:
        """A reference that is there so many seconds from now: an update, a publish."""

    def busy(self) -> float:
        """Share of the time since they were ready in which the generators worked."""

    def host_seconds(self) -> float:
        """CPU seconds of the driver's thread that were spent on the stage itself."""


class SimulatedStage:
    """Simulated time, simulated generators."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.world = scenario, World()
        self.reactor = Reactor(clock=self.world.clock, wait=self.world.wait, get=self.world.get)
        self.scorers = _Scorers(self.world, self.reactor, scenario)
        self.generators: list[SimGenerator] = []

    def spawn(self, name: str) -> SimGenerator:
        """Make one generator."""
        scenario = self.scenario
        made = SimGenerator(self.world, name, scenario.pace, scenario.faults, scenario.seed)
        self.generators.append(made)
        return made

    def later(self, seconds: float) -> SimRef:
        """A reference that is there so many seconds from now."""
        return self.world.later(seconds)

    def busy(self) -> float:
        """Share of the time since they were ready in which the generators worked."""
        times = [made.measure() for made in self.generators]
        return sum(working for working, _ in times) / max(1e-9, sum(alive for _, alive in times))

    def host_seconds(self) -> float:
        """CPU seconds that went into simulating."""
        return self.world.host_seconds


class _Scorers:
    """Scores after a while; now and then the shard is lost with its node instead."""

    def __init__(self, world: World, reactor: Reactor, scenario: Scenario) -> None:
        self._world, self._reactor, self._scenario = world, reactor, scenario
        self._random = random.Random(stable_hash(scenario.seed, "scorers"))

    def score(
        self,
        table: Any,
        *,
        what: str,
        timeout: float,
        then: Callable[[tuple[Any, Any], Exception | None], None],
    ) -> None:
        lost = self._random.random() < self._scenario.faults.lost_scores
        error = ObjectLostError("00" * 28, None, "") if lost else None
        ref = self._world.later(self._scenario.pace.score, error=error)
        self._reactor.when(
            ref,
            lambda outcome: then((None, None), outcome.error),
            who="scorers",
            what=what,
            timeout=timeout,
        )


class SimulatedRun:
    """The loop of training/ppo.py and Cluster's part in it, over a Stage."""

    def __init__(self, scenario: Scenario, stage: Stage) -> None:
        self.scenario, self.stage, self.measured = scenario, stage, Measured()
        self.reactor, self.ledger = stage.reactor, Ledger()
        self._metas: dict[tuple[int, int], tuple[Lease, ShardMeta]] = {}
        self._began = 0.0
        self.version = Version(0, 0)
        prompts = [Prompt(i, "", (1,)) for i in range(scenario.prompts * 4)]
        self.rollouts = RolloutService(
            self.reactor,
            self.ledger,
            stage.scorers,
            train=prompts,
            heldout=prompts,
            shape=BatchShape(
                scenario.prompts, scenario.samples, scenario.shard_prompts, scenario.seed
            ),
            timeout=scenario.shard_timeout,
            deliver=lambda shards: [],
            log=self.measured.log.append,
        )
        self.pool = GeneratorPool(
            self.reactor,
            self.ledger,
            spawn=stage.spawn,
            order_of=self.rollouts.order_of,
            on_commit=self._on_commit,
            on_gone=lambda version: None,
            settings=PoolSettings(
                max_staleness=scenario.max_staleness,
                depth=scenario.depth,
                start_timeout=scenario.start_timeout,
                shard_timeout=scenario.shard_timeout,
                heartbeat_timeout=scenario.heartbeat_timeout,
            ),
            log=self.measured.log.append,
        )
        self.reactor.every(1.0, self._check_versions)

    def run(self) -> Measured:
        """All iterations; what they came to."""
        began, self._began = time.thread_time(), self.reactor.clock()
        scenario, lost = self.scenario, set(self.scenario.lost_learners)
        self.pool.scale(scenario.generators)
        self._go_back_to(0, incarnation=0)
        step, checkpoint = 0, 0
        while step < scenario.iterations:
            if step in scenario.rescale:
                self.pool.scale(scenario.rescale[step])
            until = min(step + scenario.max_staleness, scenario.iterations - 1)
            if until == scenario.iterations - 1 and not self.measured.busy:
                self.measured.busy = self.stage.busy()
            self.rollouts.request(until)
            batch = self.rollouts.take(step)
            self._check(step, batch)
            self._pass(scenario.update, "learners", "update")
            if step in lost:
                lost.discard(step)
                step = checkpoint
                self._go_back_to(checkpoint, incarnation=self.version.incarnation + 1)
                continue
            step += 1
            self._publish(Version(self.version.incarnation, step))
            if scenario.evaluate_every and step % scenario.evaluate_every == 0:
                self.rollouts.sample_once(HELDOUT, step, scenario.prompts)
            if step % scenario.checkpoint_every == 0:
                checkpoint = step
            self.measured.resident.append(psutil.Process().memory_info().rss)
        self._finish(time.thread_time() - began)
        return self.measured

    def _pass(self, seconds: float, who: str, what: str) -> None:
        self.reactor.result(self.stage.later(seconds), who=who, what=what, timeout=NEVER)

    def _publish(self, version: Version) -> None:
        self._pass(self.scenario.publish, "learners", "publish")
        self.version = version
        self.pool.publish(Published(version, None, (), 0))

    def _go_back_to(self, step: int, *, incarnation: int) -> None:
        # A checkpoint's counts: all of its steps, each consumed once in the lineage that survives.
        rows = step * self.scenario.prompts * self.scenario.samples
        self.ledger.reset(incarnation, step, {"consumed": rows})
        self.rollouts.start_at(step)
        self._publish(Version(incarnation, step))

    # What must hold

    def _on_commit(self, lease: Lease, table: Any, meta: ShardMeta) -> None:
        if lease.batch.split == TRAIN:
            self._metas[lease.batch.step, lease.shard] = lease, meta
        self.measured.shards += 1
        self.rollouts.on_commit(lease, table, meta)

    def _check(self, step: int, batch: Batch) -> None:
        scenario = self.scenario
        keys: list[RolloutKey] = []
        for index in range(len(batch.shards)):
            lease, meta = self._metas.pop((step, index))
            keys += lease.keys
            lag = step - meta.oldest.step
            assert 0 <= lag <= scenario.max_staleness, f"step {step} has rows {lag} versions old"
            assert meta.oldest.incarnation == self.version.incarnation, "rows of a void lineage"
            self.measured.staleness[lag] += meta.rows
        ids = batch_of_step(scenario.prompts * 4, scenario.prompts, scenario.seed, step)
        asked = [RolloutKey(0, step, i, s) for i in ids for s in range(scenario.samples)]
        assert keys == asked, f"step {step} is not the rollouts that were asked for, each once"
        self.measured.waits.append(batch.wait_seconds)
        self.measured.rows += len(keys)

    def _check_versions(self, now: float) -> None:
        """Who serves holds the published version; who is sentenced is gone."""
        for member in self.pool.members():
            assert member.life.state not in (State.SUSPECT, State.DEAD), member.life
            if member.life.state is State.SERVING:
                assert member.life.version == self.version, f"{member.life} serves an old version"

    def _finish(self, cpu_seconds: float) -> None:
        measured = self.measured
        measured.seconds = self.reactor.clock() - self._began
        measured.driver_seconds = cpu_seconds - self.stage.host_seconds()
        measured.restarts = self.pool.restarts
        measured.counts = self.ledger.counts
        rows = self.scenario.iterations * self.scenario.prompts * self.scenario.samples
        assert measured.counts["consumed"] == measured.counts["committed"] == rows, measured.counts
        assert measured.counts["duplicated"] == 0, measured.counts


def simulate(scenario: Scenario) -> Measured:
    """Run `scenario` to its end, in simulated time."""
    return SimulatedRun(scenario, SimulatedStage(scenario)).run()
