"""Everything a run has on Ray, behind the few calls that the loop makes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ObjectLostError

from rlhf_ray.actors.control import Standing, Wish, create_control
from rlhf_ray.actors.generator import GeneratorSpec
from rlhf_ray.actors.learner import LearnerSpec
from rlhf_ray.actors.scorers import ScorerSpec
from rlhf_ray.config import Config
from rlhf_ray.data.ids import Version
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.models.reward_model import Calibration
from rlhf_ray.orchestration.checkpoints import Checkpoint, CheckpointStore
from rlhf_ray.orchestration.handles import spawner
from rlhf_ray.orchestration.learners import Deadlines, LearnerGroup, LearnersLost
from rlhf_ray.orchestration.ledger import Ledger
from rlhf_ray.orchestration.plan import Plan
from rlhf_ray.orchestration.pool import GeneratorPool, PoolSettings
from rlhf_ray.orchestration.reactor import Reactor, first_line
from rlhf_ray.orchestration.rollouts import Batch, BatchShape, RolloutService
from rlhf_ray.orchestration.scorers import ScorerPools
from rlhf_ray.orchestration.steering import Steering
from rlhf_ray.orchestration.watchdog import Watchdog

GROUP_LOSSES_ALLOWED = 3  # in a row, without a new step between; then the run ends
HEARTBEATS_MISSED = 3  # heartbeat timeouts after which learners and scorers are taken for dead


@dataclass(frozen=True, slots=True)
class Specs:
    """What the actors of a run are made of."""

    generator: GeneratorSpec
    scorer: ScorerSpec
    learner: LearnerSpec


class Cluster:
    """The actors of one run, and the driver's view of them."""

    def __init__(
        self, config: Config, plan: Plan, prompts: Prompts, specs: Specs, log: Callable[[str], None]
    ) -> None:
        self.config, self._log = config, log
        self.reactor, self.ledger = Reactor(), Ledger()
        self._control = create_control(config.run.name, plan.generators)
        self.learners = _learners(self.reactor, config, plan, specs.learner, log)
        self.scorers = ScorerPools(
            self.reactor,
            specs.scorer,
            plan.scorer,
            prompts,
            count=plan.scorers,
            threads=plan.threads,
            run=config.run.name,
            start_timeout=config.cluster.start_timeout_s,
            silent_after=HEARTBEATS_MISSED * config.cluster.heartbeat_timeout_s,
            log=log,
        )
        self.rollouts = self._rollouts(prompts)
        self.pool = self._pool(plan, specs.generator)
        self.checkpoints = CheckpointStore(
            config.dir / "checkpoints", keep=config.checkpoint.keep, log=log
        )
        Watchdog(self.reactor, log=log)
        self._steering = Steering(
            self.reactor,
            self._control,
            self.pool,
            renew=partial(ray.kill, self._control, no_restart=False),
            generators=plan.generators,
            standing=self._standing,
            log=log,
        )
        self.step, self.version = 0, Version(0, 0)
        self._group_losses, self._furthest = 0, 0
        self._stopped, self._kl = False, 0.0

    # Start and end

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Bring everything up, from `checkpoint` or from the beginning, and publish the version."""
        self.pool.scale(self._wish.generators)
        incarnation = checkpoint.meta["incarnation"] + 1 if checkpoint else 0
        try:
            self.learners.create()
            self.scorers.wait_ready()
            self.learners.wait_started()
            self._go_back_to(checkpoint, incarnation=incarnation)
        except LearnersLost as lost:
            self.version = Version(incarnation, 0)
            self._rebuild(lost)
        self.retry_if_learners_lost(self._wait_for_a_generator)

    def shutdown(self) -> None:
        """End every actor of the run."""
        self.pool.shutdown()
        self.scorers.shutdown()
        self.learners.shutdown()
        ray.kill(self._control, no_restart=True)

    # What the loop calls

    @property
    def over(self) -> bool:
        """All iterations are done, a stop was asked for, or the policy is as far as it may be."""
        return self._far or self._stopped or self.step >= self.config.ppo.iterations

    def steps(self) -> Iterator[int]:
        """The steps still to do; goes back by itself after a return to a checkpoint."""
        while not self.over:
            self.retry_if_learners_lost(
                lambda: self.reactor.pump_until(lambda: not self._wish.paused or self._wish.stop)
            )
            yield self.step
        self.ledger.void()  # with staleness, batches of steps that will not be

    @contextmanager
    def recovery(self) -> Iterator[None]:
        """When the learner group is lost: rebuild it, go back to the last checkpoint, replay."""
        try:
            yield
        except LearnersLost as lost:
            self._rebuild(lost)

    def retry_if_learners_lost(self, call: Callable[[], None]) -> None:
        """Run `call`, from its beginning again whenever the learner group was lost and rebuilt.

        For what is outside of a step; inside one see `recovery`.
        """
        while True:
            try:
                return call()
            except LearnersLost as lost:
                self._rebuild(lost)

    def calibrate(self, calibration: Calibration) -> None:
        """Use this calibration from now on, in the scorers and in a separate critic."""
        self.scorers.calibration = calibration
        self.learners.calibrate(calibration.mean, calibration.std)

    def rest(self) -> None:
        """Where it is asked for, generators give their GPU's memory up until the next version."""
        if self.config.rollout.sleep:
            self.pool.rest()

    def publish(self, step: int) -> float:
        """Make the learners' weights version `step`; seconds until generators could ask for it."""
        began = time.monotonic()
        self.version = Version(self.version.incarnation, step)
        self.pool.publish(self.learners.publish(self.version))
        return time.monotonic() - began

    def done(self, step: int, kl: float) -> bool:
        """Note that `step` is done; returns whether it was the last. kl: its responses' mean."""
        self.step, self._kl, self._stopped = step + 1, kl, self._wish.stop
        if self._far:
            limit = self.config.ppo.kl_limit
            self._log(f"responses are {kl:.2f} nats away, ppo.kl_limit is {limit:g}: the run ends")
        return self.over

    def checkpoint(self, score: float | None) -> float:
        """Write the state, when it is due; the seconds it took, 0 where none was.

        score: on held-out prompts, where it is known: the best checkpoint is kept.
        """
        began, done = time.monotonic(), self.step
        due = done % self.config.checkpoint.every == 0 or self.over
        if due:
            self._write_checkpoint(score)
        if done > self._furthest:
            self._furthest, self._group_losses = done, 0
        return time.monotonic() - began if due else 0.0

    def save_policy(self, directory: Path) -> None:
        """Write the policy as a plain transformers directory, whoever dies meanwhile."""
        self.retry_if_learners_lost(lambda: self.learners.save_policy(directory))

    def sample(self, split: int, step: int, prompts: int) -> list[dict[str, Any]]:
        """One scored response to each of the first `prompts` prompts of a split, to look at."""
        while True:
            batch = self.rollouts.sample_once(split, step, prompts)
            try:
                return self._describe(batch, None)
            except ObjectLostError:
                self._log(f"samples of step {step} were lost with their node: made again")

    def describe(self, batch: Batch, limit: int) -> list[dict[str, Any]]:
        """Some of a batch's rollouts, to look at; none where they were lost with their node."""
        try:
            return self._describe(batch, limit)
        except ObjectLostError:
            return []

    def report(self, iteration: dict[str, Any]) -> None:
        """An iteration is over: its row of metrics, with `step` and `of`."""
        self._steering.measured(iteration)

    # Inside

    @property
    def _far(self) -> bool:
        limit = self.config.ppo.kl_limit
        return limit is not None and self._kl > limit

    @property
    def _wish(self) -> Wish:
        return self._steering.wish

    def _write_checkpoint(self, score: float | None) -> None:
        meta = {
            "step": self.step,
            "incarnation": self.version.incarnation,
            "counts": dict(self.ledger.counts),
            "kl": self._kl,
            "score": score,
        }
        self.checkpoints.write(self.step, meta, self.learners.save)

    def _describe(self, batch: Batch, limit: int | None) -> list[dict[str, Any]]:
        timeout = self.config.cluster.shard_timeout_s
        return self.scorers.describe(batch.shards, limit, timeout)

    def _rebuild(self, lost: LearnersLost) -> None:
        """Make the learner group anew from the last checkpoint; also when that dies in turn."""
        while True:
            self._group_losses += 1
            if self._group_losses > GROUP_LOSSES_ALLOWED:
                raise RuntimeError(
                    f"the learner group was lost {self._group_losses} times in a row at step "
                    f"{self.step}: it would be again. The last time: {first_line(lost)}"
                ) from lost
            self._log(f"{first_line(lost)}; going back to the last checkpoint")
            try:
                self.learners.rebuild(first_line(lost))
                self._go_back_to(
                    self.checkpoints.latest(), incarnation=self.version.incarnation + 1
                )
                return
            except LearnersLost as again:
                lost = again

    def _go_back_to(self, checkpoint: Checkpoint | None, *, incarnation: int) -> None:
        """Take up the state of `checkpoint` (None: of the beginning) under a new incarnation."""
        self.step = checkpoint.meta["step"] if checkpoint else 0
        self._kl = checkpoint.meta.get("kl", 0.0) if checkpoint else 0.0
        self._stopped = False
        if checkpoint is not None:
            self.learners.load(checkpoint.path / "learner")
        self.ledger.reset(incarnation, self.step, checkpoint.meta["counts"] if checkpoint else {})
        self.rollouts.start_at(self.step)
        self.version = Version(incarnation, self.step)
        self.publish(self.step)

    def _wait_for_a_generator(self) -> None:
        self.reactor.pump_until(lambda: self.pool.serving() > 0)

    def _standing(self) -> list[Standing]:
        return self.scorers.standing() + self.learners.standing()

    def _rollouts(self, prompts: Prompts) -> RolloutService:
        config = self.config
        shape = BatchShape(
            config.ppo.prompts, config.ppo.samples, config.rollout.shard_prompts, config.run.seed
        )
        return RolloutService(
            self.reactor,
            self.ledger,
            self.scorers,
            train=prompts.train,
            heldout=prompts.heldout,
            shape=shape,
            timeout=config.cluster.shard_timeout_s,
            deliver=self.learners.fetch,
            log=self._log,
        )

    def _pool(self, plan: Plan, spec: GeneratorSpec) -> GeneratorPool:
        config = self.config
        settings = PoolSettings(
            max_staleness=config.ppo.max_staleness,
            depth=_depth(config),
            start_timeout=config.cluster.start_timeout_s,
            shard_timeout=config.cluster.shard_timeout_s,
            heartbeat_timeout=config.cluster.heartbeat_timeout_s,
        )
        return GeneratorPool(
            self.reactor,
            self.ledger,
            spawn=spawner(spec, plan.generator, threads=plan.threads, run=config.run.name),
            order_of=self.rollouts.order_of,
            on_commit=self.rollouts.on_commit,
            on_gone=self.learners.gone,
            settings=settings,
            log=self._log,
        )


def _learners(
    reactor: Reactor, config: Config, plan: Plan, spec: LearnerSpec, log: Callable[[str], None]
) -> LearnerGroup:
    times = config.cluster
    return LearnerGroup(
        reactor,
        spec,
        plan.learner,
        ranks=plan.learners,
        threads=plan.threads,
        run=config.run.name,
        deadlines=Deadlines(
            start=times.start_timeout_s,
            update=times.update_timeout_s,
            silent=HEARTBEATS_MISSED * times.heartbeat_timeout_s,
        ),
        log=log,
    )


def _depth(config: Config) -> int:
    """Shards that a generator holds at most: what fills its engine, and never fewer than two."""
    shard = config.rollout.shard_prompts * config.ppo.samples
    return max(2, config.rollout.max_in_flight // shard)
