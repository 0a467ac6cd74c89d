"""How many generators a run should have, from what it measured. No clock, no Ray.

Learners that wait for rollouts want more generators; generators without work want fewer. With
w = seconds that the learners waited in an iteration, s = seconds of the iteration, n generators:

  starved   w/s > `starved`: they bring too little. n·(1 + w/s), at most twice, rounded up.
  idle      generators stood idle for a share i > `idle` of the time while w/s ≤ `starved`/2:
            n·(1 − i) would have done; go half-way there, rounded up, but by one where that does.

A change wants `patience` iterations in a row that say the same, measured since the last change, so
one slow batch moves nothing, and the gap between the two limits keeps it from swinging. A growth
that did not shorten the wait by a third of what more generators should (they share the cores, or
the longest response decides) is taken back, and not tried again for a while; so is one whose
generators found no room, or did not start, in a quarter of an hour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

AFTER_VAIN = 50  # iterations in which a growth that was in vain is not tried again
SHORT_FOR = 900.0  # seconds with fewer serving than wanted after which those that serve are enough
WORTH = 1 / 3  # of the shortening that a growth should bring, the least that makes it worth it


@dataclass(frozen=True, slots=True)
class Limits:
    """What somebody asked for: `--generators auto --min 1 --max 8`, and how eager it is."""

    least: int
    most: int
    starved: float = 0.10
    idle: float = 0.25
    patience: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"autoscaling between {self.least} and {self.most} generators: give --min 1 or "
                f"more and --max no less than --min"
            )
        if not 0 < self.starved < 1 or not 0 < self.idle < 1 or self.patience < 1:
            raise ValueError(
                f"autoscaling at waits above {self.starved}, idleness above {self.idle} for "
                f"{self.patience} iterations: shares are between 0 and 1, iterations at least 1"
            )


@dataclass(frozen=True, slots=True)
class Load:
    """One iteration. seconds: all of it; waited: of these, learners for rollouts.

    idle: mean share of the serving generators that had no shard. serving: how many served.
    """

    seconds: float
    waited: float
    idle: float
    serving: int


def wanted(current: int, loads: Sequence[Load], limits: Limits) -> int:
    """How many generators to have instead of `current`.

    loads: the iterations since `current` last changed, oldest first. Those that began with fewer
    serving than `current` (some were starting) say nothing, and neither do too few.
    """
    within = min(max(current, limits.least), limits.most)
    if within != current:
        return within
    recent = settled(current, loads, limits)
    if len(recent) < limits.patience:
        return current
    waits = [load.waited / load.seconds for load in recent]
    if min(waits) > limits.starved:
        return min(limits.most, math.ceil(current * min(2.0, 1 + min(waits))))
    idles = [load.idle for load in recent]
    if min(idles) > limits.idle and max(waits) <= limits.starved / 2:
        needed = current * (1 - min(idles))
        half_way = min(current - 1, math.ceil((current + needed) / 2))
        return max(limits.least, math.ceil(needed), half_way)
    return current


def settled(current: int, loads: Sequence[Load], limits: Limits) -> list[Load]:
    """The last `patience` iterations in which all `current` generators served."""
    whole = [load for load in loads if load.serving >= current and load.seconds > 0]
    return whole[-limits.patience :]


@dataclass(frozen=True, slots=True)
class Growth:
    """A change from `before` generators, with which the learners waited `waited` seconds."""

    before: int
    waited: float


@dataclass
class Autoscaler:
    """Decides after each iteration; remembers since the last change, and what growing brought.

    decision: the last change in words. ceiling: growing beyond it was in vain lately.
    """

    limits: Limits
    decision: str = ""
    ceiling: int | None = None
    _loads: list[Load] = field(default_factory=list)
    _growth: Growth | None = None
    _vain_for: int = 0
    _short_for: float = 0.0

    def decide(self, current: int, load: Load) -> int:
        """How many generators to have, after an iteration with `current` of them."""
        self._loads.append(load)
        del self._loads[: -4 * self.limits.patience]
        self._vain_for = max(0, self._vain_for - 1)
        if not self._vain_for:
            self.ceiling = None
        self._short_for = 0.0 if load.serving >= current else self._short_for + load.seconds
        if (
            self._short_for > SHORT_FOR
            and (enough := max(load.serving, self.limits.least)) < current
        ):
            why = f"only {load.serving} served for {self._short_for:.0f} s"
            return self._take_back(current, enough, why)
        recent = settled(current, self._loads, self.limits)
        if len(recent) == self.limits.patience and self._growth is not None:
            growth, self._growth = self._growth, None
            if _in_vain(growth, current, recent):
                return self._take_back(
                    current, growth.before, "more of them did not shorten the wait"
                )
        most = self.limits.most if self.ceiling is None else max(self.limits.least, self.ceiling)
        then = wanted(current, self._loads, replace(self.limits, most=most))
        if then == current:
            return current
        if then > current and recent:
            self._growth = Growth(current, median(load.waited for load in recent))
        outside = not self.limits.least <= current <= self.limits.most
        return self._change(current, then, "it is asked for" if outside else _reason(recent))

    def _take_back(self, current: int, then: int, why: str) -> int:
        self.ceiling, self._vain_for, self._growth = then, AFTER_VAIN, None
        return self._change(current, then, why)

    def _change(self, current: int, then: int, why: str) -> int:
        self._loads.clear()
        self._short_for = 0.0
        self.decision = f"{current} → {then} generators: {why}"
        return then


def _in_vain(growth: Growth, current: int, recent: Sequence[Load]) -> bool:
    """Whether waiting is hardly shorter than before; in proportion it would be before/current."""
    worth = 1 - WORTH * (1 - growth.before / current)
    return median(load.waited for load in recent) > worth * growth.waited


def _reason(recent: Sequence[Load]) -> str:
    waited = median(load.waited / load.seconds for load in recent)
    idle = median(load.idle for load in recent)
    return f"learners waited {waited:.0%} of the time, generators were idle {idle:.0%}"
