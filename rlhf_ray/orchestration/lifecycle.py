"""The life of a generator, as a pure state machine.

```
            ready            loaded(current)
  STARTING ───────▶ STALE ───────────────────▶ SERVING
                    ▲ │ ▲                         │
           outdated └─┘ └──────── outdated ───────┘
  STARTING, STALE, SERVING:  drain ─▶ DRAINING ──drained──▶ DEAD
  any of these four:         silent ─▶ SUSPECT ──died──▶ DEAD      or at once: died ─▶ DEAD
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
    serves_since: float = float("inf")

    def __post_init__(self) -> None:
        self.last_heard = self.born

    def happen(self, event: Event) -> None:
        """Follow one transition."""
        self.state = after(self.state, event)

    def loaded(self, now: float) -> None:
        """It holds the current version."""
        self.happen(Event.LOADED)
        self.serves_since = min(self.serves_since, now)

    def served(self, now: float) -> float:
        """Seconds since it first held a version; 0 where it never did."""
        return max(0.0, now - self.serves_since)

    def heard(self, now: float) -> None:
        """It was alive at `now`, by a heartbeat or by what it delivered."""
        self.last_heard = max(self.last_heard, now)

    def is_silent(self, now: float, *, after: float) -> bool:
        """Whether it has said nothing for too long. A start has a deadline of its own."""
        if self.state in (State.STARTING, State.SUSPECT, State.DEAD):
            return False
        return now - self.last_heard > after


@dataclass
class RestartBudget:
    """How soon a dead generator is replaced: doubling delays, back to none where it served long.

    quiet: seconds of serving after which a death is the first again. limit: deaths in a row that
    are made good; at the next the place is given up, and the run goes on with fewer. total,
    last_error: how often it died in all, and of what.
    """

    first_delay: float = 1.0
    quiet: float = 120.0
    limit: int = 8
    deaths: int = 0
    total: int = 0
    last_error: str = ""

    def died(self, now: float, *, served: float) -> float | None:
        """Note a death; the earliest time to make another, or None when the budget is spent."""
        self.deaths = 1 if served > self.quiet else self.deaths + 1
        self.total += 1
        if self.deaths > self.limit:
            return None
        return now if self.deaths == 1 else now + self.first_delay * 2.0 ** (self.deaths - 2)
