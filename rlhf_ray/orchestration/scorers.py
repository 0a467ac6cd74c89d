"""The scorer pools: every committed shard goes to a reference and a reward scorer at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError

from rlhf_ray.actors.control import Standing
from rlhf_ray.actors.presence import CONCURRENCY, Presence
from rlhf_ray.actors.scorers import ReferenceActor, RewardActor, ScorerSpec
from rlhf_ray.data.ids import HELDOUT, TRAIN
from rlhf_ray.data.prompts import Prompts
from rlhf_ray.generators.environment import torch_environment
from rlhf_ray.orchestration.placement import near, room_for
from rlhf_ray.orchestration.reactor import Late, Outcome, Reactor, error_of
from rlhf_ray.orchestration.shares import Share

BEAT_EVERY = 2.0
RETRIES = 3  # of a call whose actor died or said nothing: scoring is pure, so nothing changes
AGAIN_AFTER = 1.0  # seconds until a scorer that could not be reached is asked again
REACHED_WITHIN = 120.0  # seconds for Ray to see that a scorer's node is gone, and to restart it
DESCRIBE_TRIES = 2  # if it hangs twice, the user's function is the cause
ROLES = {"reference": ReferenceActor, "reward": RewardActor}


@dataclass
class Scorer:
    """One scorer. Ray restarts it; a restart shows by the process that answers.

    beating: a heartbeat is under way. ended: how often it was ended from here. unreached: its last
    call did not reach it.
    """

    name: str
    role: str
    actor: Any
    work: int = 0
    ended: int = 0
    restarts: int = 0
    last_error: str = ""
    presence: Presence | None = None
    starting: bool = True
    beating: bool = False
    unreached: bool = False

    def heard(self, presence: Presence) -> None:
        """It answered, from this process."""
        if self.presence is not None and presence.pid != self.presence.pid:
            self.restarts += 1
            if not self.starting:  # else it was ended from here, and why is noted
                self.last_error = f"process {self.presence.pid} ended"
        self.presence, self.starting, self.unreached = presence, False, False

    def restart(self, why: str) -> None:
        """End its process; Ray makes another, and does what it owed again."""
        self.last_error, self.starting = why, True
        self.ended += 1
        ray.kill(self.actor, no_restart=False)

    def standing(self) -> Standing:
        """As status.py shows it."""
        here = self.presence
        return Standing(
            name=self.name,
            role=self.role,
            state="starting" if self.starting else "scoring" if self.work else "idle",
            node=here.node if here else "",
            pid=here.pid if here else None,
            work=f"{self.work} shards" if self.work else "",
            restarts=self.restarts,
            last_error=self.last_error,
        )


class ScorerPools:
    """Reference and reward scorers. Ray restarts and retries them: they are pure.

    silent_after: seconds without an answer to a heartbeat after which one is started anew.
    """

    def __init__(
        self,
        reactor: Reactor,
        spec: ScorerSpec,
        share: Share,
        prompts: Prompts,
        *,
        count: int,
        threads: int,
        run: str,
        silent_after: float,
        log: Callable[[str], None],
    ) -> None:
        self._silent_after, self._share = silent_after, share
        self._unreached: list[Callable[[], None]] = []
        reactor.every(BEAT_EVERY, self._listen)
        reactor.every(AGAIN_AFTER, self._ask_again)
        self._reactor, self._log, self._gold = reactor, log, spec.reward.gold
        self.calibration: Any = None
        # Both kinds score a shard at the same time, so they share the threads.
        env = {"env_vars": torch_environment(max(1, threads // len(ROLES))) | share.environment()}

        asked = {TRAIN: prompts.train, HELDOUT: prompts.heldout}
        # Kept: an actor that Ray restarts is given it again, and Ray itself does not keep it.
        self._asked = ray.put({split: [prompt.asked for prompt in asked[split]] for split in asked})
        more: dict[str, tuple[Any, ...]] = {"reference": (), "reward": (self._asked,)}

        def make(role: str, index: int, place: int) -> Scorer:
            name = f"{role}-{index}"
            options = ray.remote(concurrency_groups=CONCURRENCY)(ROLES[role]).options(
                name=f"{run}-{name}",
                **share.options(),
                scheduling_strategy=near(share, place),
                max_restarts=-1,
                max_task_retries=RETRIES,
                runtime_env=env,
            )
            return Scorer(name, role, options.remote(spec, *more[role]))

        self._pools = {
            role: [make(role, i, first * count + i) for i in range(count)]
            for first, role in enumerate(ROLES)
        }

    def wait_ready(self, timeout: float) -> None:
        """Return when every scorer has loaded; raises what keeps one from it."""
        scorers = self._all()
        outcomes = self._outcomes(
            scorers, lambda scorer: scorer.actor.ready.remote(), what="start", timeout=timeout
        )
        error = error_of(outcomes)
        if isinstance(error, Late):
            raise TimeoutError(
                f"{error}: {room_for([self._share.bundle()])}; a model that takes longer to load "
                f"wants more than --cluster.start-timeout-s {timeout:g}"
            ) from error
        if error is not None:
            raise error
        for scorer, outcome in zip(scorers, outcomes, strict=True):
            if outcome:
                scorer.heard(outcome.value)

    def score(
        self,
        table: Any,
        *,
        what: str,
        timeout: float,
        then: Callable[[tuple[Any, Any], Exception | None], None],
    ) -> None:
        """Score one shard; `then((ref columns, score columns), error)` once both are there."""
        columns: dict[str, Any] = {}
        failed: list[Exception] = []

        def settle(role: str, ref: Any, error: Exception | None) -> None:
            if failed:
                return
            columns[role] = ref
            if error is not None:
                failed.append(error)
                then((None, None), error)
            elif len(columns) == len(ROLES):
                then((columns["reference"], columns["reward"]), None)

        self._score("reference", (table,), what, timeout, settle)
        self._score("reward", (table, self.calibration), what, timeout, settle)

    def describe(self, shards: Any, limit: int | None, timeout: float) -> list[dict[str, Any]]:
        """Samples (see RewardActor.describe) of scored shards."""
        what = f"describe samples, with {self._gold}" if self._gold else "describe samples"
        scorer, left = self._pools["reward"][0], DESCRIBE_TRIES
        while True:
            ended = scorer.ended
            outcomes = self._outcomes(
                [scorer],
                lambda scorer: scorer.actor.describe.remote(shards, limit),
                what=what,
                timeout=timeout,
            )
            error = error_of(outcomes)
            if isinstance(error, Late) and left > 1:
                left -= 1
                self._give_up_on(scorer, ended, error)
            elif error is not None:
                raise error
            else:
                return [sample for outcome in outcomes if outcome for sample in outcome.value]

    def standing(self) -> list[Standing]:
        """Every scorer."""
        return [scorer.standing() for scorer in self._all()]

    def shutdown(self) -> None:
        """Kill all scorers."""
        for scorer in self._all():
            ray.kill(scorer.actor, no_restart=True)

    def _all(self) -> list[Scorer]:
        return [scorer for pool in self._pools.values() for scorer in pool]

    def _outcomes(
        self,
        scorers: Sequence[Scorer],
        ask: Callable[[Scorer], Any],
        *,
        what: str,
        timeout: float,
    ) -> list[Outcome | None]:
        """How a call of each ended; all are asked again while one cannot be reached."""
        began = self._reactor.clock()
        while True:
            outcomes = self._reactor.outcomes(
                [ask(scorer) for scorer in scorers],
                who=[scorer.name for scorer in scorers],
                what=what,
                timeout=timeout,
            )
            reached = not isinstance(error_of(outcomes), ActorUnavailableError)
            if reached or not self._may_ask_again(began):
                return outcomes
            self._reactor.pump_until(partial(self._is_past, self._reactor.clock() + AGAIN_AFTER))

    def _score(
        self,
        role: str,
        args: tuple[Any, ...],
        what: str,
        timeout: float,
        then: Callable[[str, Any, Exception | None], None],
        tries: int = RETRIES,
        began: float | None = None,
    ) -> None:
        """Have the least busy scorer of a role score, if possible one that the last call reached.

        It does one shard after the other, so its time to answer grows with what it owes. One that
        says nothing is started anew. One that died with its node is unreachable until Ray has seen
        that. Ray's own retries may all be over by then.
        """
        scorer = min(self._pools[role], key=lambda scorer: (scorer.unreached, scorer.work))
        began = self._reactor.clock() if began is None else began
        columns, answer = scorer.actor.score.options(num_returns=2).remote(*args)
        scorer.work, ended = scorer.work + 1, scorer.ended

        def settle(outcome: Outcome) -> None:
            scorer.work -= 1
            if isinstance(outcome.error, Late):
                ray.cancel(answer)  # else its successor would do it before what it is asked now
                if tries == 0:
                    then(role, columns, _too_slow(outcome.error, timeout))
                    return
                self._give_up_on(scorer, ended, outcome.error)
                self._score(role, args, what, timeout, then, tries - 1)
                return
            scorer.unreached = isinstance(outcome.error, ActorUnavailableError)
            if scorer.unreached and self._may_ask_again(began):
                self._unreached.append(
                    partial(self._score, role, args, what, timeout, then, tries, began)
                )
                return
            if outcome.error is None:
                scorer.heard(outcome.value)
            then(role, columns, outcome.error)

        patience = timeout * scorer.work
        self._reactor.when(answer, settle, who=scorer.name, what=what, timeout=patience)

    def _may_ask_again(self, began: float) -> bool:
        return self._reactor.clock() < began + REACHED_WITHIN

    def _is_past(self, moment: float) -> bool:
        return self._reactor.clock() >= moment

    def _ask_again(self, now: float) -> None:
        waiting, self._unreached = self._unreached, []
        for ask in waiting:
            ask()

    def _listen(self, now: float) -> None:
        for scorer in self._all():
            if scorer.starting or scorer.beating:
                continue  # while it starts, imports hold the interpreter for seconds
            scorer.beating = True
            self._reactor.when(
                scorer.actor.beat.remote(),
                partial(self._on_beat, scorer, scorer.ended),
                who=scorer.name,
                what="heartbeat",
                timeout=self._silent_after,
            )

    def _on_beat(self, scorer: Scorer, ended: int, outcome: Outcome) -> None:
        scorer.beating = False
        if outcome.error is None:
            scorer.heard(outcome.value)
        elif isinstance(outcome.error, Late):
            self._give_up_on(scorer, ended, outcome.error)

    def _give_up_on(self, scorer: Scorer, ended: int, late: Late) -> None:
        """Start it anew, unless that was done since it was asked (`ended` is of then)."""
        if scorer.ended == ended:
            self._log(f"{late}; it is started anew")
            scorer.restart(str(late))


def _too_slow(late: Late, timeout: float) -> TimeoutError:
    return TimeoutError(
        f"{late}, nor did others before it: give a shard longer than --cluster.shard-timeout-s "
        f"{timeout:g}, or make shards smaller (--rollout.shard-prompts)"
    )
