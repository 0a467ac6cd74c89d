"""Everything a run has on Ray, behind the few calls that the loop makes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray

from rlhf_ray.actors.control import Report, Wish, create_control
from rlhf_ray.actors.generator import GeneratorSpec
from rlhf_ray.actors.learner import LearnerSpec
from rlhf_ray.actors.scorers import ScorerSpec
from rlhf_ray.config import Config
from rlhf_ray.data.ids import Version
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.orchestration.checkpoints import Checkpoint, CheckpointStore
from rlhf_ray.orchestration.handles import spawner
from rlhf_ray.orchestration.learners import LearnerGroup, LearnersLost
from rlhf_ray.orchestration.ledger import Ledger
from rlhf_ray.orchestration.placement import Plan
from rlhf_ray.orchestration.pool import GeneratorPool, PoolSettings
from rlhf_ray.orchestration.reactor import Outcome, Reactor
from rlhf_ray.orchestration.rollouts import BatchShape, RolloutService
from rlhf_ray.orchestration.scorers import ScorerPools

EXCHANGE_EVERY = 0.5
STALL_AFTER = 60.0


class Cluster:
    """The actors of one run, and the driver's view of them."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        prompts: Prompts,
        *,
        generator: GeneratorSpec,
        scorer: ScorerSpec,
        learner: LearnerSpec,
        log: Callable[[str], None],
    ) -> None:
        self.config, self._log = config, log
        run, threads = config.run.name, plan.threads
        self.reactor = Reactor()
        self.ledger = Ledger()
        self._control = create_control(run, plan.generators)
        self.learners = LearnerGroup(
            self.reactor,
            learner,
            plan.learner,
            ranks=plan.learners,
            threads=threads,
            run=run,
            start_timeout=config.cluster.start_timeout_s,
            update_timeout=config.cluster.update_timeout_s,
        )
        self.scorers = ScorerPools(
            self.reactor, scorer, plan.scorer, count=plan.scorers, threads=threads, run=run
        )
        self.rollouts = RolloutService(
            self.reactor,
            self.ledger,
            self.scorers,
            train=prompts.train,
            heldout=prompts.heldout,
            shape=BatchShape(
                config.ppo.prompts,
                config.ppo.samples,
                config.rollout.shard_prompts,
                config.run.seed,
            ),
            timeout=config.cluster.shard_timeout_s,
        )
        self.pool = GeneratorPool(
            self.reactor,
            self.ledger,
            spawn=spawner(generator, plan.generator, threads=threads, run=run),
            order_of=self.rollouts.order_of,
            on_commit=self.rollouts.on_commit,
            settings=PoolSettings(
                max_staleness=config.ppo.max_staleness,
                depth=max(
                    2,
                    config.rollout.max_in_flight
                    // (config.rollout.shard_prompts * config.ppo.samples),
                ),
                start_timeout=config.cluster.start_timeout_s,
                shard_timeout=config.cluster.shard_timeout_s,
                heartbeat_timeout=config.cluster.heartbeat_timeout_s,
            ),
            log=log,
        )
        self.checkpoints = CheckpointStore(
            config.dir / "checkpoints", keep=config.checkpoint.keep, log=log
        )
        self.step = 0
        self.version = Version(0, 0)
        self._wish = Wish()
        self._exchanging = False
        self._report = Report()

    # Start and end

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Bring everything up, from `checkpoint` or from the beginning, and publish the version."""
        self.pool.scale(self.config.cluster.generators)
        self.learners.create()
        self.reactor.every(EXCHANGE_EVERY, self._exchange)
        self.reactor.every(STALL_AFTER, self._watch)
        self.reactor.results(
            self.scorers.ready(),
            who="scorer",
            what="start",
            timeout=self.config.cluster.start_timeout_s,
        )
        self.learners.wait_started()
        self._go_back_to(
            checkpoint, incarnation=(checkpoint.meta["incarnation"] + 1) if checkpoint else 0
        )
        self.reactor.pump_until(lambda: self.pool.serving() > 0)

    def shutdown(self) -> None:
        """End every actor of the run."""
        self.pool.shutdown()
        self.scorers.shutdown()
        self.learners.shutdown()
        ray.kill(self._control, no_restart=True)

    # What the loop calls

    def steps(self) -> Iterator[int]:
        """The steps still to do; goes back by itself after a return to a checkpoint."""
        while self.step < self.config.ppo.iterations and not self._wish.stop:
            self.reactor.pump_until(lambda: not self._wish.paused or self._wish.stop)
            yield self.step

    @contextmanager
    def recovery(self) -> Iterator[None]:
        """When the learner group is lost: rebuild it, go back to the last checkpoint, replay."""
        try:
            yield
        except LearnersLost as lost:
            self._log(f"{lost}; going back to the last checkpoint")
            self.learners.shutdown()
            self.learners.create()
            self.learners.wait_started()
            self._go_back_to(self.checkpoints.latest(), incarnation=self.version.incarnation + 1)

    def publish(self, step: int) -> float:
        """Make the learners' weights version `step`; seconds until generators could ask for it."""
        began = time.monotonic()
        self.version = Version(self.version.incarnation, step)
        published = self.learners.publish(self.version)
        self.pool.publish(published)
        return time.monotonic() - began

    def checkpoint(self, step: int) -> float:
        """Write the state after `step`, when it is due; the seconds it took, 0 when it was not."""
        began = time.monotonic()
        done = step + 1
        last = done == self.config.ppo.iterations or self._wish.stop
        self.step = done
        if done % self.config.checkpoint.every and not last:
            return 0.0
        meta = {
            "step": done,
            "incarnation": self.version.incarnation,
            "counts": dict(self.ledger.counts),
            "restarts": self.pool.restarts,
        }
        self.checkpoints.write(done, meta, self.learners.save)
        return time.monotonic() - began

    def describe(self, shards: Any, limit: int | None = None) -> list[dict[str, Any]]:
        """Scored rollouts as rows to look at."""
        return self.reactor.result(
            self.scorers.describe(shards, limit),
            who="reward scorer",
            what="describe samples",
            timeout=self.config.cluster.shard_timeout_s,
        )

    def report(self, summary: dict[str, Any]) -> None:
        """What status.py shows of the run itself."""
        self._report.summary = summary

    # Inside

    def _go_back_to(self, checkpoint: Checkpoint | None, *, incarnation: int) -> None:
        """Take up the state of `checkpoint` (None: of the beginning) under a new incarnation."""
        self.step = checkpoint.meta["step"] if checkpoint else 0
        if checkpoint is not None:
            self.learners.load(checkpoint.path / "learner")
        self.ledger.reset(incarnation, self.step, checkpoint.meta["counts"] if checkpoint else {})
        self.rollouts.start_at(self.step)
        self.version = Version(incarnation, self.step)
        self.publish(self.step)

    def _exchange(self, now: float) -> None:
        """Report to the control actor and hear what is wished, without waiting."""
        if self._exchanging:
            return
        self._exchanging = True
        self._report.actors = [
            {
                "name": member.life.name,
                "role": "generator",
                "state": str(member.life.state),
                "version": str(member.life.version or "-"),
                "work": len(member.leases),
                "last_error": member.life.last_error,
                **(asdict(member.vitals) if member.vitals else {}),
            }
            for member in self.pool.members()
        ]
        self.reactor.when(
            self._control.exchange.remote(self._report),
            self._on_wish,
            who="control",
            what="exchange",
            timeout=30.0,
        )

    def _on_wish(self, outcome: Outcome) -> None:
        self._exchanging = False
        if outcome.error is not None:
            return  # asked again at the next exchange
        self._wish = outcome.value
        if self._wish.generators is not None:
            self.pool.scale(self._wish.generators)

    def _watch(self, now: float) -> None:
        """Say where a stalled run stands."""
        for wait in self.reactor.oldest()[:3]:
            if now - wait.since > STALL_AFTER:
                self._log(f"waiting for {wait.who}: {wait.what}, {now - wait.since:.0f} s")


def _depth(config: Config) -> int:
    """Shards that a generator holds at most: what fills its engine, and never fewer than two."""
    shard = config.rollout.shard_prompts * config.ppo.samples
    return max(2, config.rollout.max_in_flight // shard)
