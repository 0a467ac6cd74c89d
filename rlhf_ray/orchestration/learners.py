"""The learner group: N ranks that act as one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from rlhf_ray.actors.learner import LearnerActor, LearnerSpec
from rlhf_ray.data.ids import Version
from rlhf_ray.generators.environment import torch_environment
from rlhf_ray.orchestration.placement import Share, reserve, within
from rlhf_ray.orchestration.pool import Published
from rlhf_ray.orchestration.reactor import Reactor

ANSWER_TIMEOUT = 10.0  # seconds for a rank to show that it lives
CALL_TIMEOUT = 600.0  # seconds for what is short: publish, save, load


class LearnersLost(RuntimeError):
    """A rank died: the group is to be rebuilt from the last checkpoint."""


class LearnerGroup:
    """All ranks; every call goes to all of them and returns what rank 0 says."""

    def __init__(
        self,
        reactor: Reactor,
        spec: LearnerSpec,
        share: Share,
        *,
        ranks: int,
        threads: int,
        run: str,
        start_timeout: float,
        update_timeout: float,
    ) -> None:
        self._reactor, self._spec, self._share = reactor, spec, share
        self._ranks, self._threads, self._run = ranks, threads, run
        self._start_timeout, self._update_timeout = start_timeout, update_timeout
        self._actors: list[Any] = []
        self._group: Any = None

    def create(self) -> None:
        """Make the actors, without waiting for them."""
        self._group = reserve(
            self._reactor,
            [self._share.bundle()] * self._ranks,
            strategy="PACK",
            who="learner group",
            timeout=self._start_timeout,
        )
        threads = max(1, self._threads // self._ranks)
        self._actors = [
            ray.remote(LearnerActor)
            .options(
                name=f"{self._run}-learner-{rank}",
                num_cpus=self._share.cpus,
                num_gpus=self._share.gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=2,
                scheduling_strategy=within(self._group, rank),
                runtime_env={"env_vars": torch_environment(threads)},
            )
            .remote(rank, self._ranks, self._spec)
            for rank in range(self._ranks)
        ]
        self._address = self._actors[0].address.remote()
        self._started = [actor.start.remote(self._address) for actor in self._actors]

    def wait_started(self) -> int:
        """Wait until every rank has its model; the number of parameters of the policy."""
        return self._gather(self._started, "start", self._start_timeout)[0]

    def update(self, step: int, shards: Sequence[tuple[Any, ...]]) -> dict[str, float]:
        """One iteration on these shards."""
        return self._all("update", step, list(shards), timeout=self._update_timeout)[0]

    def publish(self, version: Version) -> Published:
        """Pack the policy's weights as `version`; they stay where rank 0 is, to be pulled."""
        manifest = self._all("pack", version, timeout=CALL_TIMEOUT)[0]
        count = len(manifest.checksums)
        refs = self._actors[0].take_buckets.options(num_returns=count).remote()
        refs = [refs] if count == 1 else refs
        return Published(version, ray.put(manifest), tuple(refs), manifest.bytes)

    def save(self, directory: Path) -> None:
        """Every rank writes its part of the state."""
        self._all("save", str(directory), timeout=self._update_timeout)

    def load(self, directory: Path) -> None:
        """Every rank reads its part of the state."""
        self._all("load", str(directory), timeout=self._update_timeout)

    def save_policy(self, directory: Path) -> None:
        """Write the policy as a plain transformers directory."""
        self._all("save_policy", str(directory), timeout=self._update_timeout)

    def shutdown(self) -> None:
        """Kill all ranks and give back what they reserved."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        self._actors = []
        if self._group is not None:
            ray.util.remove_placement_group(self._group)
            self._group = None

    def _all(self, method: str, *args: Any, timeout: float) -> list[Any]:
        refs = [getattr(actor, method).remote(*args) for actor in self._actors]
        return self._gather(refs, method, timeout)

    def _gather(self, refs: list[Any], what: str, timeout: float) -> list[Any]:
        try:
            return self._reactor.results(refs, who="learner", what=what, timeout=timeout)
        except (RayActorError, TimeoutError) as error:
            raise LearnersLost(f"the learner group was lost in `{what}`: {error}") from error
        except RuntimeError as error:
            if self._all_alive():
                raise
            raise LearnersLost(f"a rank was lost in `{what}`: {error}") from error

    def _all_alive(self) -> bool:
        """Whether every rank answers: of a dead one the others may hear first, by a broken line."""
        calls = [actor.address.remote() for actor in self._actors]
        try:
            self._reactor.results(calls, who="learner", what="answer", timeout=ANSWER_TIMEOUT)
        except (RayActorError, TimeoutError):
            return False
        return True
