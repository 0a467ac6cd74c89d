"""The driver's one event loop: every remote call it waits for is here, with a deadline and a name.

One thread, no locks. While the driver waits for one thing (an update, a publish) it goes on serving
all others (dispatch, scores, heartbeats, scaling), because every wait runs through `pump`.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

TICK = 0.05  # seconds that an idle pump sleeps at most before the periodic functions run again
EXPIRE_EVERY = 0.1  # seconds between looks at the deadlines
# A gap between two looks that is so many seconds longer than meant: the driver was away.
AWAY = 1.0


class Late(TimeoutError):
    """A remote call did not end by its deadline; the message names whom it was asked of."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a remote call ended: with a value, or with the error that it or its actor died of."""

    value: Any = None
    error: Exception | None = None


@dataclass(slots=True)
class Wait:
    """One remote call in flight."""

    ref: Any
    who: str
    what: str
    since: float
    deadline: float
    then: Callable[[Outcome], None]


@dataclass(slots=True)
class Periodic:
    """A function that runs between waits, every `seconds`."""

    seconds: float
    call: Callable[[float], None]
    due: float = 0.0


def ray_wait(refs: Sequence[Any], timeout: float) -> list[Any]:
    """The refs that are ready, within `timeout` seconds; nothing is fetched."""
    if not refs:
        time.sleep(timeout)
        return []
    ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0, fetch_local=False)
    if not ready and timeout > 0:
        ready, _ = ray.wait(list(refs), num_returns=1, timeout=timeout, fetch_local=False)
    return ready


class Reactor:
    """Waits for remote calls and runs what follows from each. Clock and wait can be simulated.

    Its time stands still while the driver is away (it writes a file, or was stopped): nobody is
    late, or silent, for an answer that was not looked for.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[Sequence[Any], float], list[Any]] = ray_wait,
        get: Callable[[Any], Any] = ray.get,
    ) -> None:
        self._clock, self._wait, self._get = clock, wait, get
        self._left, self._away = clock(), 0.0
        self._waits: dict[Any, Wait] = {}
        self._periodic: list[Periodic] = []
        self.every(EXPIRE_EVERY, self._expire)

    def clock(self) -> float:
        """Seconds, without those in which the driver was away."""
        return self._clock() - self._away

    def every(self, seconds: float, call: Callable[[float], None]) -> None:
        """Run `call(now)` every `seconds`, whatever the driver waits for."""
        self._periodic.append(Periodic(seconds, call))

    def when(
        self,
        ref: Any,
        then: Callable[[Outcome], None],
        *,
        who: str,
        what: str,
        timeout: float,
    ) -> None:
        """Run `then` once `ref` is there or failed; past the deadline it gets `Late`."""
        assert ref not in self._waits, f"{who}: {what} is waited for already"
        now = self.clock()
        self._waits[ref] = Wait(ref, who, what, now, now + timeout, then)

    def forget(self, who: str) -> None:
        """Stop waiting for anything that `who` owes."""
        self._waits = {ref: wait for ref, wait in self._waits.items() if wait.who != who}

    def outcomes(
        self, refs: Sequence[Any], *, who: Sequence[str], what: str, timeout: float
    ) -> list[Outcome | None]:
        """How each of `refs` ended; `who[i]` owes `refs[i]`.

        Returns at the first error, with None for those still running. Their errors are returned;
        what is raised comes from the callback of another call.
        """
        ended: dict[int, Outcome] = {}
        for i, ref in enumerate(refs):
            self.when(ref, partial(ended.__setitem__, i), who=who[i], what=what, timeout=timeout)
        try:
            self.pump_until(lambda: len(ended) == len(refs) or error_of(ended.values()) is not None)
        finally:
            for ref in refs:
                self._waits.pop(ref, None)
        return [ended.get(i) for i in range(len(refs))]

    def results(
        self, refs: Sequence[Any], *, who: Sequence[str], what: str, timeout: float
    ) -> list[Any]:
        """The values of `refs`, in order, asked of `who`, one each. Raises the first error."""
        outcomes = self.outcomes(refs, who=who, what=what, timeout=timeout)
        if error := error_of(outcomes):
            raise error
        return [outcome.value for outcome in outcomes if outcome]

    def result(self, ref: Any, *, who: str, what: str, timeout: float) -> Any:
        """The value of `ref`, serving everything else meanwhile. Raises what the call raised."""
        return self.results([ref], who=[who], what=what, timeout=timeout)[0]

    def pump_until(self, done: Callable[[], bool]) -> None:
        """Serve everything until `done()`."""
        while not done():
            self.pump(TICK)

    def pump(self, timeout: float) -> None:
        """Serve what is ready now, else wait up to `timeout` seconds for something to be."""
        self._leave_out()
        now = self.clock()
        for periodic in self._periodic:
            if now >= periodic.due:
                periodic.due = now + periodic.seconds
                periodic.call(now)
        self._leave_out()
        ready = self._wait(list(self._waits), timeout)
        self._leave_out(beyond=timeout)
        for ref in ready:
            self._settle(ref)

    def oldest(self) -> list[Wait]:
        """What is waited for, longest first: where a stalled run stands."""
        return sorted(self._waits.values(), key=lambda wait: wait.since)

    def _leave_out(self, *, beyond: float = 0.0) -> None:
        """Take from the clock what has passed since the last time, if it is longer than meant."""
        now = self._clock()
        away = now - self._left - beyond
        self._away += away if away > AWAY else 0.0
        self._left = now

    def _settle(self, ref: Any) -> None:
        wait = self._waits.pop(ref, None)
        if wait is None:  # forgotten by what an earlier ref of the same round set off
            return
        try:
            outcome = Outcome(value=self._get(ref))
        except RayError as error:
            outcome = Outcome(error=cause_of(error))
        wait.then(outcome)

    def _expire(self, now: float) -> None:
        for wait in [wait for wait in self._waits.values() if now > wait.deadline]:
            if self._waits.pop(wait.ref, None) is not None:
                late = (
                    f"{wait.who} did not finish `{wait.what}` in {wait.deadline - wait.since:.0f} s"
                )
                wait.then(Outcome(error=Late(late)))


def cause_of(error: RayError) -> Exception:
    """The exception that a remote function raised, itself, after Ray's with its traceback."""
    if not isinstance(error, RayTaskError) or not isinstance(error.cause, Exception):
        return error
    error.cause.__cause__ = error
    return error.cause


def error_of(outcomes: Iterable[Outcome | None]) -> Exception | None:
    """The first error among them."""
    return next((outcome.error for outcome in outcomes if outcome and outcome.error), None)


def first_line(error: Exception) -> str:
    """What an error says in short; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
