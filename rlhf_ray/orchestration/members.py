"""One generator as the driver sees it: its life, its handle, what is under way; and its place."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlhf_ray.actors.generator import Order, Vitals
from rlhf_ray.data.ids import Version
from rlhf_ray.orchestration.ledger import Lease
from rlhf_ray.orchestration.lifecycle import Life, RestartBudget


@dataclass(frozen=True, slots=True)
class Published:
    """A version that generators can pull: who has this needs nobody's help to load it."""

    version: Version
    manifest: Any
    buckets: tuple[Any, ...]
    bytes: int


class Handle(Protocol):
    """One generator, as the pool sees it; every call returns a reference at once."""

    def ready(self) -> Any: ...
    def beat(self) -> Any: ...
    def load(self, published: Published) -> Any: ...
    def generate(self, order: Order) -> tuple[Any, Any]: ...
    def abort(self, keys: Sequence[Any]) -> Any: ...
    def kill(self) -> None: ...


@dataclass
class Member:
    """One generator. loading: the version under way; recalled: an abort is under way."""

    life: Life
    handle: Handle
    budget: RestartBudget
    leases: dict[int, Lease] = field(default_factory=dict)
    beating: bool = False
    recalled: bool = False
    loading: Version | None = None
    vitals: Vitals | None = None


class Places:
    """The places of a pool: each has its own restart budget, which its next generator inherits.

    So one that keeps dying is made ever more slowly and at last no more, while deaths here and
    there among hundreds, each rare, never add up to a pool that shrinks.
    """

    def __init__(self) -> None:
        self._vacant: list[tuple[float, RestartBudget]] = []
        self.given_up = 0

    def reset(self) -> None:
        """Somebody wishes for another number: every place may be tried again."""
        self._vacant.clear()
        self.given_up = 0

    def vacate(self, budget: RestartBudget, now: float) -> bool:
        """The generator of a place died; False where its budget is spent: it is given up."""
        again = budget.died(now)
        if again is None:
            self.given_up += 1
            return False
        self._vacant.append((again, budget))
        return True

    def take(self, missing: int, now: float) -> list[RestartBudget]:
        """The places, of `missing` ones, that a generator may be made for now."""
        if missing <= 0:
            self._vacant.clear()
            return []
        self._vacant.sort(key=lambda place: place[0])
        del self._vacant[missing:]
        self._vacant += [(now, RestartBudget()) for _ in range(missing - len(self._vacant))]
        due = [budget for again, budget in self._vacant if again <= now]
        self._vacant = [place for place in self._vacant if place[0] > now]
        return due
