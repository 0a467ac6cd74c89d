"""The scorer pools: every committed shard goes to a reference and a reward scorer at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
RETRIES = 3  # by Ray, of a call whose actor died: scoring is pure, so nothing changes
TRIES = 4  # of a call that nobody answers in time
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


@dataclass(frozen=True, slots=True)
class _Ask:
    """A call that any scorer of a role may answer.

    method: gives (the result, who computed it). then: gets a reference to the result, or the
    error. tries: scorers that may still say nothing for `timeout` seconds. began: when it was asked
    first.
    """

    role: str
    method: str
    args: tuple[Any, ...]
    what: str
    timeout: float
    then: Callable[[Any, Exception | None], None]
    tries: int
    began: float


class ScorerPools:
    """Reference and reward scorers. Ray restarts and retries them: they are pure.

    start_timeout: seconds for one to load its models. silent_after: seconds without an answer to a
    heartbeat after which one is started anew.
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
        start_timeout: float,
        silent_after: float,
        log: Callable[[str], None],
    ) -> None:
        self._start_timeout, self._silent_after = start_timeout, silent_after
        self._share = share
        self._unreached: list[_Ask] = []
        reactor.every(BEAT_EVERY, self._listen)
        reactor.every(AGAIN_AFTER, self._ask_again)
        self._reactor, self._log, self._gold = reactor, log, spec.reward.gold
        self.calibration: Any = None
        # Both kinds score a shard at the same time, so they share the threads.
        env = {"env_vars": torch_environment(max(1, threads // len(ROLES))) | share.environment()}

        asked = {TRAIN: prompts.train, HELDOUT: prompts.heldout}
        # For a constructor's argument in the store Ray warns on the user's console.
        self._asked = [
            ray.put({split: [prompt.asked for prompt in asked[split]] for split in asked})
        ]

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
            return Scorer(name, role, options.remote(spec))

        self._pools = {
            role: [make(role, i, first * count + i) for i in range(count)]
            for first, role in enumerate(ROLES)
        }

    def wait_ready(self) -> None:
        """Return when every scorer has loaded; raises what keeps one from it."""
        scorers, timeout = self._all(), self._start_timeout
        began = self._reactor.clock()
        while True:
            outcomes = self._reactor.outcomes(
                [scorer.actor.ready.remote() for scorer in scorers],
                who=[scorer.name for scorer in scorers],
                what="start",
                timeout=timeout,
            )
            error = error_of(outcomes)
            if not (isinstance(error, ActorUnavailableError) and self._may_ask_again(began)):
                break
            self._reactor.pump_until(partial(self._is_past, self._reactor.clock() + AGAIN_AFTER))
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
                error = _too_slow(error, timeout) if isinstance(error, Late) else error
                then((None, None), error)
            elif len(columns) == len(ROLES):
                then((columns["reference"], columns["reward"]), None)

        reward = (table, self.calibration, self._asked)
        for role, args in {"reference": (table,), "reward": reward}.items():
            self._ask(
                _Ask(
                    role,
                    "score",
                    args,
                    what,
                    timeout,
                    then=partial(settle, role),
                    tries=TRIES,
                    began=self._reactor.clock(),
                )
            )

    def describe(
        self, shards: Sequence[tuple[Any, ...]], limit: int | None, timeout: float
    ) -> list[dict[str, Any]]:
        """Samples (see RewardActor.describe) of scored shards."""
        what = f"describe samples, with {self._gold}" if self._gold else "describe samples"
        some = shards[:limit]  # each has a row at least, but where a reward drops it
        ended: list[tuple[Any, Exception | None]] = []
        self._ask(
            _Ask(
                "reward",
                "describe",
                (some, limit, self._asked),
                what,
                timeout,
                then=lambda rows, error: ended.append((rows, error)),
                tries=DESCRIBE_TRIES,
                began=self._reactor.clock(),
            )
        )
        self._reactor.pump_until(lambda: bool(ended))
        rows, error = ended[0]
        if error is not None:
            raise error
        return self._reactor.result(rows, who="reward", what=what, timeout=timeout)

    def standing(self) -> list[Standing]:
        """Every scorer."""
        return [scorer.standing() for scorer in self._all()]

    def shutdown(self) -> None:
        """Kill all scorers."""
        for scorer in self._all():
            ray.kill(scorer.actor, no_restart=True)

    def _all(self) -> list[Scorer]:
        return [scorer for pool in self._pools.values() for scorer in pool]

    def _ask(self, ask: "_Ask") -> None:
        """Ask the least busy scorer of a role, if possible one that the last call reached.

        It does one call after the other, so its time to answer grows with what it owes. One that
        says nothing is started anew. One that died with its node is unreachable until Ray has seen
        that. Ray's own retries may all be over by then.
        """
        scorer = min(self._pools[ask.role], key=lambda scorer: (scorer.unreached, scorer.work))
        result, answer = getattr(scorer.actor, ask.method).options(num_returns=2).remote(*ask.args)
        scorer.work, ended = scorer.work + 1, scorer.ended

        def settle(outcome: Outcome) -> None:
            scorer.work -= 1
            if isinstance(outcome.error, Late):
                ray.cancel(answer)  # else its successor would do it before what it is asked now
                if ask.tries > 1:
                    self._give_up_on(scorer, ended, outcome.error)
                    self._ask(replace(ask, tries=ask.tries - 1))
                else:
                    ask.then(result, outcome.error)
                return
            scorer.unreached = isinstance(outcome.error, ActorUnavailableError)
            if scorer.unreached and self._may_ask_again(ask.began):
                self._unreached.append(ask)
                return
            if outcome.error is None:
                scorer.heard(outcome.value)
            ask.then(result, outcome.error)

        patience = ask.timeout * scorer.work
        self._reactor.when(answer, settle, who=scorer.name, what=ask.what, timeout=patience)

    def _may_ask_again(self, began: float) -> bool:
        return self._reactor.clock() < began + REACHED_WITHIN

    def _is_past(self, moment: float) -> bool:
        return self._reactor.clock() >= moment

    def _ask_again(self, now: float) -> None:
        waiting, self._unreached = self._unreached, []
        for ask in waiting:
            self._ask(ask)

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
            self._reactor.when(
                scorer.actor.ready.remote(),
                partial(self._on_ready, scorer, scorer.ended),
                who=scorer.name,
                what="start",
                timeout=self._start_timeout,
            )

    def _on_ready(self, scorer: Scorer, ended: int, outcome: Outcome) -> None:
        """It is back, and listened to again. What keeps it from that, its next call tells."""
        if outcome.error is None:
            scorer.heard(outcome.value)
        elif isinstance(outcome.error, Late) and scorer.starting:  # else busy with what it owed
            self._give_up_on(scorer, ended, outcome.error)


def _too_slow(late: Late, timeout: float) -> TimeoutError:
    return TimeoutError(
        f"{late}, nor did others before it: give a shard longer than --cluster.shard-timeout-s "
        f"{timeout:g}, or make shards smaller (--rollout.shard-prompts)"
    )
