"""What the control plane costs at size: simulated generators, and the driver's own code.

python jobs/bench_control.py                                  256 generators in simulated time
python jobs/bench_control.py --generators 1024 --bounds 0,1   more of them, other bounds
python jobs/bench_control.py --ray --bounds 1 --shards 6 --iterations 3     real Ray, real time

In simulated time the reactor, ledger, pool and rollout service run as they are; a response's length
is log-normal, generators die, wedge and stop. With --ray they talk to actors that sleep instead of
generating, a few hundred generators to a process, so that what Ray itself costs the driver is in.
The last line is JSON.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from rlhf_ray import cli
from rlhf_ray.actors.generator import Order, ShardMeta, Vitals
from rlhf_ray.data.ids import Version
from rlhf_ray.orchestration.reactor import Reactor
from rlhf_ray.simulation.run import (
    Measured,
    Scenario,
    SimulatedRun,
    simulate,
)
from rlhf_ray.simulation.world import Faults, response_length
from rlhf_ray.weights.buckets import Published

PROCESSES = 2  # that the sleeping generators of --ray share


@dataclass(frozen=True)
class Options:
    generators: int = 256
    """Simulated generators."""
    bounds: str = "0,1,2,4"
    """Bounds on staleness to compare, with commas."""
    iterations: int = 12
    """Iterations of each run."""
    shards: int = 12
    """Shards of four prompts that an iteration has for each generator."""
    update: float = 30.0
    """Seconds of one update of the learners."""
    life: float = 36_000.0
    """Mean seconds between the faults of one generator."""
    seed: int = 0
    """Decides lengths and faults."""
    ray: bool = False
    """Real Ray calls to actors that sleep, in real time, without faults."""


def main(options: Options) -> None:
    rows = []
    print(
        f"{'K':>2} {'busy':>6} {'rows/s':>7} {'driver':>8} {'us/shard':>9} {'mean lag':>8} "
        f"{'max lag':>7} {'restarts':>8} {'requeued':>8} {'MB':>5} {'growth':>7}"
    )
    for bound in map(int, options.bounds.split(",")):
        measured = (on_ray if options.ray else simulate)(scenario(options, bound))
        rows.append(row(bound, measured))
        print(
            "{K:>2} {busy:>6.1%} {rows_per_s:>7.1f} {driver_cores:>8.2%} {us_per_shard:>9.0f} "
            "{mean_staleness:>8.2f} {max_staleness:>7} {restarts:>8} {requeued:>8} "
            "{resident_mb:>5} {growth:>7.1%}".format(**rows[-1]),
            flush=True,
        )
    print(json.dumps({"options": asdict(options), "runs": rows}))


def scenario(options: Options, bound: int) -> Scenario:
    """What is run with one bound on staleness."""
    prompts = options.generators * options.shards * 4
    faults = Faults(mean_life=options.life, slow_beat=0.01)
    return Scenario(
        generators=options.generators,
        max_staleness=bound,
        iterations=options.iterations,
        prompts=prompts,
        update=options.update,
        evaluate_every=5,
        seed=options.seed,
        faults=Faults() if options.ray else faults,
    )


def row(bound: int, measured: Measured) -> dict[str, Any]:
    """One line of the table. driver_cores: CPU seconds of the driver's code a second of the run."""
    lags, resident = measured.staleness, measured.resident
    late = resident[len(resident) // 4 :]
    return {
        "K": bound,
        "busy": measured.busy,
        "rows_per_s": measured.rows / measured.seconds,
        "seconds": measured.seconds,
        "driver_cores": measured.driver_seconds / measured.seconds,
        "us_per_shard": 1e6 * measured.driver_seconds / measured.shards,
        "waiting": sum(measured.waits) / measured.seconds,
        "mean_staleness": sum(lag * n for lag, n in lags.items()) / measured.rows,
        "max_staleness": max(lags),
        "restarts": measured.restarts,
        "requeued": measured.counts["requeued"],
        "duplicated": measured.counts["duplicated"],
        "resident_mb": resident[-1] >> 20,
        "growth": late[-1] / late[0] - 1,
    }


class Sleeper:
    """Many generators in one process: each call sleeps as long as the work would take."""

    async def ready(self) -> Vitals:
        return Vitals(0.0, 0, 0, None, 0, "sleeping")

    async def load(self, version: Version, seconds: float) -> Version:
        await asyncio.sleep(seconds)
        return version

    async def generate(
        self, order: Order, seconds: float, oldest: Version
    ) -> tuple[None, ShardMeta]:
        await asyncio.sleep(seconds)
        return None, ShardMeta(len(order.keys), 0, oldest)

    async def score(self, table: Any) -> tuple[None, int]:
        return None, 0

    async def after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SleepingGenerator:
    """One generator of a Sleeper, as the pool's handle."""

    def __init__(self, actor: Any, scenario: Scenario) -> None:
        self._actor, self._scenario = actor, scenario
        self._version = Version(0, 0)
        self.working = 0.0
        self.born = time.monotonic()

    def ready(self) -> Any:
        return self._actor.ready.remote()

    def beat(self) -> Any:
        return self._actor.ready.remote()

    def load(self, published: Published) -> Any:
        self._version = published.version
        return self._actor.load.remote(published.version, self._scenario.pace.load)

    def generate(self, order: Order) -> tuple[Any, Any]:
        pace = self._scenario.pace
        longest = max(response_length(self._scenario.seed, key, pace) for key in order.keys)
        seconds = longest * pace.token
        self.working += seconds / self._scenario.depth
        method = self._actor.generate.options(num_returns=2)
        table, meta = method.remote(order, seconds, self._version)
        return table, meta

    def void(self, incarnation: int) -> Any:
        return self._actor.after.remote(0.0)

    def rest(self) -> Any:
        return self._actor.after.remote(0.0)

    def lacking(self) -> str:
        return ""

    def kill(self) -> None:
        """The process is others' too."""


class RayStage:
    """Real Ray, generators that sleep; see Stage."""

    def __init__(self, scenario: Scenario) -> None:
        import ray

        self.reactor = Reactor()
        self.scorers = self
        self.generators: list[SleepingGenerator] = []
        self._scenario = scenario
        sleeper = ray.remote(Sleeper).options(num_cpus=0, max_concurrency=100_000)
        self._actors = [sleeper.remote() for _ in range(PROCESSES)]
        ray.get([actor.ready.remote() for actor in self._actors])

    def spawn(self, name: str) -> SleepingGenerator:
        actor = self._actors[len(self.generators) % PROCESSES]
        self.generators.append(SleepingGenerator(actor, self._scenario))
        return self.generators[-1]

    def later(self, seconds: float) -> Any:
        return self._actors[0].after.remote(seconds)

    def score(self, table: Any, *, what: str, timeout: float, then: Any) -> None:
        missing = ["reference", "reward"]

        def settle(outcome: Any) -> None:
            missing.pop()
            if not missing:
                then((None, None), outcome.error)

        for actor in (self._actors[0], self._actors[-1]):
            _, rows = actor.score.options(num_returns=2).remote(table)
            self.reactor.when(rows, settle, who="scorers", what=what, timeout=timeout)

    def busy(self) -> float:
        now = time.monotonic()
        alive = sum(now - made.born for made in self.generators)
        return sum(made.working for made in self.generators) / alive

    def host_seconds(self) -> float:
        return 0.0


def on_ray(scenario: Scenario) -> Measured:
    """The same run over real Ray calls; driver_seconds is of the whole driver process."""
    import ray

    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    ray.init(address="local", num_cpus=2, **quiet)
    try:
        run = SimulatedRun(scenario, RayStage(scenario))
        began = time.process_time()
        measured = run.run()
        measured.driver_seconds = time.process_time() - began
        return measured
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(tyro.cli(Options, prog="jobs/bench_control.py", description=cli.described(__doc__)))
