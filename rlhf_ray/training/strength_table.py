"""Preference strength by bucket: where labels are doubted, and where the models disagree."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from rlhf_ray.training.strength import PairStrength


@dataclass(frozen=True, slots=True)
class Bucket:
    """Pairs of like strength: how many, from where to where, and means over them."""

    pairs: int
    low: float
    high: float
    mean: float
    std: float
    agree: float
    target: float


def buckets_of(found: Sequence[PairStrength], buckets: int) -> list[Bucket]:
    """`buckets` parts of equal size (to one pair), the weakest first."""
    if not 1 <= buckets <= len(found):
        raise ValueError(f"{buckets} buckets of {len(found)} pairs: give 1 to {len(found)}")
    ordered = sorted(found, key=lambda one: one.mean)
    edges = [round(i * len(ordered) / buckets) for i in range(buckets + 1)]
    return [_bucket(ordered[a:b]) for a, b in pairwise(edges)]


def _bucket(pairs: Sequence[PairStrength]) -> Bucket:
    return Bucket(
        pairs=len(pairs),
        low=pairs[0].mean,
        high=pairs[-1].mean,
        mean=fmean(one.mean for one in pairs),
        std=fmean(one.std for one in pairs),
        agree=fmean(one.agree for one in pairs),
        target=fmean(one.target for one in pairs),
    )


def markdown(buckets: Sequence[Bucket]) -> str:
    """The table as docs and terminals show it."""
    lines = [
        "| bucket | pairs | mean gap from | to | mean | deviation | models that agree | σ(gap) |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {i} | {one.pairs} | {one.low:+.2f} | {one.high:+.2f} | {one.mean:+.2f} | {one.std:.2f} "
        f"| {one.agree:.2f} | {one.target:.2f} |"
        for i, one in enumerate(buckets, 1)
    ]
    return "\n".join(lines) + "\n"
