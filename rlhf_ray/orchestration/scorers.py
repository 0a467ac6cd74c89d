"""The scorer pools: every committed shard goes to a reference and a reward scorer at once."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import ray

from rlhf_ray.actors.scorers import ReferenceActor, RewardActor, ScorerSpec
from rlhf_ray.generators.environment import torch_environment
from rlhf_ray.orchestration.placement import Share
from rlhf_ray.orchestration.reactor import Outcome, Reactor

RETRIES = 3  # of a call whose actor died: scoring is pure, so doing it again changes nothing


class ScorerPools:
    """Reference and reward scorers. Ray restarts and retries them: they are pure."""

    def __init__(
        self,
        reactor: Reactor,
        spec: ScorerSpec,
        share: Share,
        *,
        count: int,
        threads: int,
        run: str,
    ) -> None:
        self._reactor = reactor
        self.calibration: Any = None
        # Both kinds score a shard at the same time, so they share the threads.
        env = {"env_vars": torch_environment(max(1, threads // 2))}

        def make(role: type, name: str) -> list[Any]:
            actor = ray.remote(role)
            return [
                actor.options(
                    name=f"{run}-{name}-{i}",
                    num_cpus=share.cpus,
                    num_gpus=share.gpus,
                    max_restarts=-1,
                    max_task_retries=RETRIES,
                    runtime_env=env,
                ).remote(spec)
                for i in range(count)
            ]

        self._references = make(ReferenceActor, "reference")
        self._rewards = make(RewardActor, "reward")
        self._next_reference = itertools.cycle(self._references)
        self._next_reward = itertools.cycle(self._rewards)

    def ready(self) -> list[Any]:
        """References that resolve when each scorer has loaded."""
        return [actor.ready.remote() for actor in self._references + self._rewards]

    def score(
        self,
        table: Any,
        *,
        what: str,
        timeout: float,
        then: Callable[[tuple[Any, Any], Exception | None], None],
    ) -> None:
        """Score one shard; `then((ref columns, score columns), error)` once both are there."""
        reference, reward = next(self._next_reference), next(self._next_reward)
        ref_table, ref_rows = reference.score.options(num_returns=2).remote(table)
        score_table, score_rows = reward.score.options(num_returns=2).remote(
            table, self.calibration
        )
        missing = {"reference", "reward"}

        def settle(role: str, outcome: Outcome) -> None:
            if outcome.error is not None and missing:
                missing.clear()
                then((ref_table, score_table), outcome.error)
            elif missing == {role}:
                missing.clear()
                then((ref_table, score_table), None)
            else:
                missing.discard(role)

        for role, rows in (("reference", ref_rows), ("reward", score_rows)):
            self._reactor.when(
                rows,
                partial(settle, role),
                who=f"{role} scorer",
                what=what,
                timeout=timeout,
            )

    def describe(self, shards: Any, limit: int | None = None) -> Any:
        """A reference to samples (see RewardActor.describe) of scored shards."""
        return self._rewards[0].describe.remote(shards, limit)

    def shutdown(self) -> None:
        """Kill all scorers."""
        for actor in self._references + self._rewards:
            ray.kill(actor, no_restart=True)
