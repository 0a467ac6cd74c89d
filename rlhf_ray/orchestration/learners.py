"""The learner group: N ranks that act as one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from rlhf_ray.actors.control import Standing
from rlhf_ray.actors.learner import LearnerActor, LearnerSpec
from rlhf_ray.actors.presence import CONCURRENCY, Presence
from rlhf_ray.data.ids import Version
from rlhf_ray.files import Fingerprint
from rlhf_ray.generators.environment import torch_environment
from rlhf_ray.orchestration.placement import reserve, within
from rlhf_ray.orchestration.reactor import Late, Outcome, Reactor, error_of
from rlhf_ray.orchestration.shares import Share
from rlhf_ray.weights.buckets import Published

ANSWER_TIMEOUT = 10.0  # seconds for a rank to show that it lives
BEAT_EVERY = 2.0
DEATHS = (RayActorError, OutOfMemoryError)  # the memory monitor's kill is no RayActorError


class LearnersLost(RuntimeError):
    """A rank died: the group is to be rebuilt from the last checkpoint."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds. update: of any call of a learner at work. silent: a rank that did not answer for so
    long is taken for dead.
    """

    start: float
    update: float
    silent: float


@dataclass
class Rank:
    """One rank. beating: a heartbeat is under way."""

    name: str
    actor: Any
    presence: Presence | None = None
    beating: bool = False


class LearnerGroup:
    """All ranks; every call goes to all of them, and may raise LearnersLost."""

    def __init__(
        self,
        reactor: Reactor,
        spec: LearnerSpec,
        share: Share,
        *,
        ranks: int,
        threads: int,
        run: str,
        deadlines: Deadlines,
        log: Callable[[str], None],
    ) -> None:
        self._reactor, self._spec, self._share, self._log = reactor, spec, share, log
        self._size, self._threads, self._run = ranks, threads, run
        self._deadlines = deadlines
        self._ranks: list[Rank] = []
        self._started: list[Any] = []
        self._placement: Any = None
        self._doing = ""
        self._calibration: tuple[float, float] | None = None
        self.version: Version | None = None
        self.rebuilt = 0
        self.last_error = ""
        reactor.every(BEAT_EVERY, self._listen)

    def create(self) -> None:
        """Make the actors once there is room for all, without waiting for them to start.

        Raises ValueError where there is none in time.
        """
        self._placement = reserve(
            self._reactor,
            [self._share.bundle()] * self._size,
            # Made anew, it goes wherever there is room: the planned node may be what died.
            strategy="PACK" if self.rebuilt else self._share.strategy,
            who="learner group",
            timeout=self._deadlines.start,
            target=self._share.node(0),
        )
        threads = max(1, self._threads // self._size)
        learner = ray.remote(concurrency_groups=CONCURRENCY)(LearnerActor)
        self._ranks = [
            Rank(
                f"learner-{rank}",
                learner.options(
                    name=f"{self._run}-learner-{rank}",
                    **self._share.options(),
                    max_restarts=0,
                    max_task_retries=0,
                    scheduling_strategy=within(self._placement, rank),
                    runtime_env={
                        "env_vars": torch_environment(threads) | self._share.environment()
                    },
                ).remote(rank, self._size, self._spec),
            )
            for rank in range(self._size)
        ]
        address = self._ranks[0].actor.address.remote()
        self._started = [rank.actor.start.remote(address) for rank in self._ranks]

    def wait_started(self) -> None:
        """Return when every rank has its model."""
        try:
            here = self._gather(self._started, "start", self._deadlines.start)
        except LearnersLost as lost:
            if not isinstance(lost.__cause__, Late):
                raise
            raise LearnersLost(
                f"{lost}; a model that takes longer to load wants more than "
                f"--cluster.start-timeout-s {self._deadlines.start:g}"
            ) from lost.__cause__
        for rank, presence in zip(self._ranks, here, strict=True):
            rank.presence = presence

    def rebuild(self, why: str) -> None:
        """Make the group anew, without its state but for the calibration."""
        self.rebuilt += 1
        self.last_error = why
        self.shutdown()
        self.create()
        self.wait_started()
        if self._calibration is not None:
            self.calibrate(*self._calibration)

    def calibrate(self, mean: float, std: float) -> None:
        """Tell every rank how raw scores become rewards."""
        self._calibration = mean, std
        self._all("calibrate", mean, std, timeout=self._deadlines.update)

    def fetch(self, shards: Sequence[tuple[Any, ...]]) -> list[int]:
        """Have every rank take these shards; which of them are gone, where some are."""
        found = self._all("fetch", list(shards), timeout=self._deadlines.update)
        return sorted(set().union(*found))

    def update(self, step: int) -> dict[str, float]:
        """One iteration on the shards that were fetched."""
        return self._all("update", step, timeout=self._deadlines.update)[0]

    def publish(self, version: Version) -> Published:
        """Pack the policy's weights as `version`; they stay where rank 0 is, to be pulled."""
        manifest = self._all("pack", version, timeout=self._deadlines.update)[0]
        self.version = version
        count = len(manifest.sizes)
        # Before any other call: they may be views of what the next update changes.
        refs = self._ranks[0].actor.take_objects.options(num_returns=count).remote()
        refs = [refs] if count == 1 else refs
        return Published(version, ray.put(manifest), tuple(refs), manifest.bytes)

    def gone(self, version: Version) -> None:
        """Raise LearnersLost where nobody can load `version` and the learners are idle.

        While they work, a new version follows, or their call reports the loss.
        """
        if version == self.version and not self._doing:
            raise LearnersLost(f"version {version} is gone, and the learners have made no other")

    def save(self, directory: Path) -> dict[str, Fingerprint]:
        """Every rank writes its part of the state; the large files of all, by name."""
        written = self._all("save", str(directory), timeout=self._deadlines.update)
        return {name: found for part in written for name, found in part.items()}

    def load(self, directory: Path) -> None:
        """Every rank reads its part of the state."""
        self._all("load", str(directory), timeout=self._deadlines.update)

    def save_policy(self, directory: Path) -> None:
        """Write the policy as a plain transformers directory."""
        self._all("save_policy", str(directory), timeout=self._deadlines.update)

    def standing(self) -> list[Standing]:
        """Every rank."""
        return [
            Standing(
                name=rank.name,
                role="learner",
                state=self._doing or ("idle" if rank.presence else "starting"),
                version=str(self.version or ""),
                node=rank.presence.node if rank.presence else "",
                pid=rank.presence.pid if rank.presence else None,
                restarts=self.rebuilt,
                last_error=self.last_error,
            )
            for rank in self._ranks
        ]

    def shutdown(self) -> None:
        """Kill all ranks and give back what they reserved."""
        for rank in self._ranks:
            self._reactor.forget(rank.name)
            ray.kill(rank.actor, no_restart=True)
        self._ranks, self._doing, self.version = [], "", None
        if self._placement is not None:
            ray.util.remove_placement_group(self._placement)
            self._placement = None

    def _all(self, method: str, *args: Any, timeout: float) -> list[Any]:
        self._doing = method
        refs = [getattr(rank.actor, method).remote(*args) for rank in self._ranks]
        found = self._gather(refs, method, timeout)
        self._doing = ""
        return found

    def _gather(self, refs: list[Any], what: str, timeout: float) -> list[Any]:
        names = [rank.name for rank in self._ranks]
        outcomes = self._reactor.outcomes(refs, who=names, what=what, timeout=timeout)
        error = error_of(outcomes)
        if isinstance(error, (*DEATHS, Late)):
            raise LearnersLost(f"the learner group was lost in `{what}`: {error}") from error
        if isinstance(error, RuntimeError) and not self._all_alive():
            raise LearnersLost(f"a rank was lost in `{what}`: {error}") from error
        if error is not None:
            raise error
        return [outcome.value for outcome in outcomes if outcome]

    def _all_alive(self) -> bool:
        """Whether every rank answers: of a dead one the others may hear first, by a broken line."""
        calls = [rank.actor.beat.remote() for rank in self._ranks]
        names = [rank.name for rank in self._ranks]
        answers = self._reactor.outcomes(calls, who=names, what="answer", timeout=ANSWER_TIMEOUT)
        return error_of(answers) is None

    def _listen(self, now: float) -> None:
        for rank in self._ranks:
            if rank.presence is None or rank.beating:
                continue  # while it starts, imports hold the interpreter for seconds
            rank.beating = True
            self._reactor.when(
                rank.actor.beat.remote(),
                partial(self._on_beat, rank),
                who=rank.name,
                what="heartbeat",
                timeout=self._deadlines.silent,
            )

    def _on_beat(self, rank: Rank, outcome: Outcome) -> None:
        """Kill a silent rank: whoever waits for one of its calls gets its death as the error.

        With no call under way, raise LearnersLost here, into whatever the driver waits for: it may
        be generators that wait for a version that died with the rank's node.
        """
        rank.beating = False
        if isinstance(outcome.error, Late):
            self._log(f"{rank.name} is silent for {self._deadlines.silent:.0f} s: it is ended")
            ray.kill(rank.actor, no_restart=True)
        elif isinstance(outcome.error, DEATHS) and not self._doing:
            raise LearnersLost(f"{rank.name} died while idle: {outcome.error}")
