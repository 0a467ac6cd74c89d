"""Says where a stalled run stands: which actor, which call, for how many seconds."""

from collections.abc import Callable
from typing import Any

from rlhf_ray.orchestration.reactor import Reactor, Wait

STALL_AFTER = 60.0
LOOK_EVERY = 1.0
MOST_LINES = 3


class Watchdog:
    """Logs what is waited for longer than `after` seconds, and again whenever that has doubled.

    At most MOST_LINES lines a time, the longest wait first.
    """

    def __init__(
        self, reactor: Reactor, *, log: Callable[[str], None], after: float = STALL_AFTER
    ) -> None:
        self._reactor, self._log, self._after = reactor, log, after
        self._next: dict[Any, float] = {}  # by reference: the age at which it is named next
        reactor.every(LOOK_EVERY, self.look)

    def look(self, now: float) -> None:
        """Name what is due."""
        late = [wait for wait in self._reactor.oldest() if now - wait.since > self._after]
        due = [wait for wait in late if now - wait.since >= self._due(wait)]
        self._next = {wait.ref: self._due(wait) for wait in late}
        for wait in due:
            self._next[wait.ref] = 2 * (now - wait.since)
        for wait in due[:MOST_LINES]:
            self._log(
                f"waiting for {wait.who}: `{wait.what}` for {now - wait.since:.0f} s, "
                f"given up after {wait.deadline - wait.since:.0f} s"
            )

    def _due(self, wait: Wait) -> float:
        return self._next.get(wait.ref, self._after)
