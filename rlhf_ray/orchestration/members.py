"""One generator as the driver sees it: its life, its handle, what is under way; and its place."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlhf_ray.actors.control import Standing
from rlhf_ray.actors.generator import Order, Vitals
from rlhf_ray.data.ids import Version
from rlhf_ray.orchestration.ledger import Lease
from rlhf_ray.orchestration.lifecycle import Life, RestartBudget
from rlhf_ray.weights.buckets import Published


class Handle(Protocol):
    """One generator, as the pool sees it; every call returns a reference at once.

    void: forget what was ordered before this incarnation. lacking: what it has no room for, or "".
    """

    def ready(self) -> Any: ...
    def beat(self) -> Any: ...
    def load(self, published: Published) -> Any: ...
    def generate(self, order: Order) -> tuple[Any, Any]: ...
    def void(self, incarnation: int) -> Any: ...
    def rest(self) -> Any: ...
    def lacking(self) -> str: ...
    def kill(self) -> None: ...


@dataclass
class Member:
    """One generator.

    loading: the version that it takes up. resting, recalled: a `rest` or `void` of it has not
    returned. done: shards that it has committed.
    """

    life: Life
    handle: Handle
    budget: RestartBudget
    leases: dict[int, Lease] = field(default_factory=dict)
    beating: bool = False
    resting: bool = False
    recalled: bool = False
    loading: Version | None = None
    done: int = 0
    vitals: Vitals | None = None

    @property
    def engine_waits(self) -> bool:
        """Whether its engine has a call that it takes no step in."""
        return self.resting or self.loading is not None

    def standing(self) -> Standing:
        """As status.py shows it."""
        life, vitals = self.life, self.vitals
        loading = f"loads {self.loading}" if self.loading else ""
        shards = f"{len(self.leases)} shards, {self.done} done"
        return Standing(
            name=life.name,
            role="generator",
            state=str(life.state),
            version=str(life.version or ""),
            node=vitals.node if vitals else "",
            pid=vitals.pid if vitals else None,
            work=", ".join(filter(None, (loading, shards))),
            restarts=self.budget.total,
            last_error=self.budget.last_error,
        )


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

    def vacate(self, budget: RestartBudget, now: float, *, served: float) -> bool:
        """The generator of a place died; False where its budget is spent: it is given up."""
        again = budget.died(now, served=served)
        if again is None:
            self.given_up += 1
            return False
        self._vacant.append((again, budget))
        return True

    def standing(self, now: float) -> list[Standing]:
        """The places that nobody holds, for their back-off is not over."""
        return [
            Standing(
                name="(to be made)",
                role="generator",
                state="waiting",
                work=f"made in {max(0.0, again - now):.0f} s",
                restarts=budget.total,
                last_error=budget.last_error,
            )
            for again, budget in self._vacant
            if budget.total
        ]

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


@dataclass
class Idleness:
    """How much of the time the generators that hold a version had no shard, since the last `take`.

    least: the fewest of them that there were.
    """

    least: int | None = None
    _shares: float = 0.0
    _samples: int = 0

    def sample(self, members: Iterable[Member]) -> None:
        """Look at them now."""
        loaded = [m for m in members if m.life.version is not None]
        idle = sum(not m.leases for m in loaded)
        self.least = min(len(loaded), len(loaded) if self.least is None else self.least)
        self._shares += idle / max(1, len(loaded))
        self._samples += 1

    def take(self) -> tuple[float, int]:
        """(mean share that was idle, the fewest that held a version); begins anew."""
        share, least = self._shares / max(1, self._samples), self.least or 0
        self.least, self._shares, self._samples = None, 0.0, 0
        return share, least
