"""How many generators a run should have, from what it measured. Pure: the caller keeps the clock.

Learners that wait for rollouts want more generators; generators without work want fewer. With
w = seconds that the learners waited in an iteration, s = seconds of the iteration, n generators:

  starved   w/s > `starved`: they bring too little. n·(1 + w/s), at most twice, rounded up.
  idle      generators stood idle for a share i > `idle` of the time while w/s ≤ `starved`/2:
            n·(1 − i) would have done; go half-way there, rounded up.

A change wants `patience` iterations in a row that say the same, measured since the last change, so
one slow batch moves nothing, and the gap between the two limits keeps it from swinging.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


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
    settled = [load for load in loads if load.serving >= current and load.seconds > 0]
    recent = settled[-limits.patience :]
    if len(recent) < limits.patience:
        return current
    waits = [load.waited / load.seconds for load in recent]
    if min(waits) > limits.starved:
        return min(limits.most, math.ceil(current * min(2.0, 1 + min(waits))))
    idles = [load.idle for load in recent]
    if min(idles) > limits.idle and max(waits) <= limits.starved / 2:
        return max(limits.least, math.ceil(current * (1 - min(idles) / 2)))
    return current
