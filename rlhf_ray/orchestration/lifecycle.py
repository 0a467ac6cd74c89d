"""The life of a generator, as a pure state machine.

```
            ready            loaded(current)
  STARTING ───────▶ STALE ───────────────────▶ SERVING ──drain──▶ DRAINING ──drained──▶ DEAD
                      ▲                           │
                      └────────── outdated ───────┘
  any but DEAD: silent ─▶ SUSPECT ─▶ (died) DEAD      any: died ─▶ DEAD
```
SUSPECT is entered when heartbeats stop; it is a sentence, not a doubt: its leases go back at once,
it is killed, and another is made. One that was merely slow is refused by the ledger afterwards.
"""

import enum
from dataclasses import dataclass, field

from rlhf_ray.data.ids import Version


class State(enum.StrEnum):
    """Where a generator is in its life."""

    STARTING = "starting"
    STALE = "stale"
    SERVING = "serving"
    DRAINING = "draining"
    SUSPECT = "suspect"
    DEAD = "dead"


class Event(enum.StrEnum):
    """What happens to a generator."""

    READY = "ready"
    LOADED = "loaded"
    OUTDATED = "outdated"
    DRAIN = "drain"
    DRAINED = "drained"
    SILENT = "silent"
    DIED = "died"


_ALIVE = (State.STARTING, State.STALE, State.SERVING, State.DRAINING)

_TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STARTING, Event.READY): State.STALE,
    (State.STALE, Event.LOADED): State.SERVING,
    (State.STALE, Event.OUTDATED): State.STALE,
    (State.SERVING, Event.OUTDATED): State.STALE,
    (State.STARTING, Event.DRAIN): State.DRAINING,
    (State.STALE, Event.DRAIN): State.DRAINING,
    (State.SERVING, Event.DRAIN): State.DRAINING,
    (State.DRAINING, Event.DRAINED): State.DEAD,
    (State.SUSPECT, Event.DIED): State.DEAD,
    **{(state, Event.SILENT): State.SUSPECT for state in _ALIVE},
    **{(state, Event.DIED): State.DEAD for state in _ALIVE},
}


def after(state: State, event: Event) -> State:
    """The state that follows; AssertionError for an event that cannot happen in `state`."""
    assert (state, event) in _TRANSITIONS, f"{event} cannot happen to a generator that is {state}"
    return _TRANSITIONS[state, event]


@dataclass
class Life:
    """What the driver knows of one generator. Times are seconds of the driver's clock."""

    name: str
    born: float
    state: State = State.STARTING
    version: Version | None = None
    last_heard: float = field(default=0.0)

    def __post_init__(self) -> None:
        self.last_heard = self.born

    def happen(self, event: Event) -> None:
        """Follow one transition."""
        self.state = after(self.state, event)

    def heard(self, now: float) -> None:
        """It was alive at `now`, by a heartbeat or by what it delivered."""
        self.last_heard = max(self.last_heard, now)

    def is_silent(self, now: float, *, start_timeout: float, heartbeat_timeout: float) -> bool:
        """Whether it has said nothing for too long for the state it is in."""
        if self.state in (State.SUSPECT, State.DEAD):
            return False
        limit = start_timeout if self.state is State.STARTING else heartbeat_timeout
        return now - self.last_heard > limit


@dataclass
class RestartBudget:
    """How soon a dead generator is replaced: doubling delays, back to none after a quiet time.

    limit: deaths in a row after which no more are made and the run goes on with fewer.
    total, last_error: how often it died in all, and of what.
    """

    first_delay: float = 1.0
    quiet: float = 120.0
    limit: int = 8
    deaths: int = 0
    last_death: float = float("-inf")
    total: int = 0
    last_error: str = ""

    def died(self, now: float) -> float | None:
        """Note a death; the earliest time to make another, or None when the budget is spent."""
        self.deaths = 1 if now - self.last_death > self.quiet else self.deaths + 1
        self.last_death = now
        self.total += 1
        if self.deaths > self.limit:
            return None
        return now if self.deaths == 1 else now + self.first_delay * 2.0 ** (self.deaths - 2)
