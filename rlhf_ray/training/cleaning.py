"""Mending a preference set by its strength: each remedy, and what it did to each row.

(Wang et al. 2024, section 2.) Weak pairs are those of least mean gap, by share or by threshold.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch

from rlhf_ray.algos.remedies import smoothed_targets, strength_margins, weakest
from rlhf_ray.data.ranked_list import Comparison, RankedList
from rlhf_ray.training.strength import PairStrength


@dataclass(frozen=True, slots=True)
class Remedy:
    """What is done to weak pairs (drop, flip, soft, smooth) and to all of them (margin)."""

    weak: str | None
    margin: bool = False


# soft: the label is as sure as the models are; smooth: it is 1 − α sure.
REMEDIES = {
    "flip": Remedy("flip"),
    "soft": Remedy("soft"),
    "smooth": Remedy("smooth"),
    "margin": Remedy(None, margin=True),
    "flip+margin": Remedy("flip", margin=True),
    "smooth+margin": Remedy("smooth", margin=True),
    "drop": Remedy("drop"),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Which pairs are weak (exactly one of the first two), and how far a remedy goes."""

    fraction: float | None = None
    threshold: float | None = None
    label_smoothing: float = 0.1
    margin_scale: float = 1.0
    margin_limit: float = float("inf")


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A list as it is written; notes: what was done to its pairs, [] where nothing was."""

    ranked: RankedList
    notes: list[dict[str, Any]]


def clean(
    lists: Sequence[RankedList], found: Sequence[PairStrength], how: str, limits: Limits
) -> tuple[list[Cleaned], dict[str, int]]:
    """The lists with the remedy `how` applied; how many pairs were changed, by what was done.

    found: the strength of every comparison of a list, list after list; a list without any was not
    judged, and stays as it is. A pair keeps the margin and target it came with unless the remedy
    sets them; a flipped one loses both, for they were of the label as it was. A list of one pair of
    two is written with its ranks exchanged where that is flipped, and leaves where it is dropped;
    any other gets `pairs`. Raises ValueError for an unknown remedy, or unless exactly one of
    fraction and threshold is given where pairs are to be weak.
    """
    if how not in REMEDIES:
        raise ValueError(f"remedy {how!r} is none of {', '.join(REMEDIES)}")
    remedy = REMEDIES[how]
    weak = _weak(found, remedy, limits)
    margins = _margins(found, weak, remedy, limits)
    targets = _targets(found, weak, remedy, limits)
    judged = zip(found, weak, margins, targets, strict=True)
    grouped = groupby(judged, key=lambda one: one[0].list)
    of_list = {place: list(some) for place, some in grouped}
    cleaned, counts = [], {"pairs": len(found), "lists": len(lists)}
    for place, ranked in enumerate(lists):
        if place not in of_list:
            cleaned.append(Cleaned(ranked, []))
            counts["lists not judged"] = counts.get("lists not judged", 0) + 1
            continue
        pairs = zip(ranked.comparisons(), of_list[place], strict=True)
        changes = [_change(pair, *one, remedy) for pair, one in pairs]
        for _, note in changes:
            if note is not None:
                counts[note["did"]] = counts.get(note["did"], 0) + 1
        kept = _rebuilt(ranked, changes)
        if kept is None:
            counts["lists left out"] = counts.get("lists left out", 0) + 1
        else:
            cleaned.append(Cleaned(kept, [note for _, note in changes if note is not None]))
    return cleaned, counts


def _weak(found: Sequence[PairStrength], remedy: Remedy, limits: Limits) -> list[bool]:
    if remedy.weak is None:
        return [False] * len(found)
    mean_P = torch.tensor([one.mean for one in found], dtype=torch.float64)
    marked: list[bool] = weakest(
        mean_P, fraction=limits.fraction, threshold=limits.threshold
    ).tolist()
    return marked


def _margins(
    found: Sequence[PairStrength], weak: Sequence[bool], remedy: Remedy, limits: Limits
) -> list[float | None]:
    """Of the label as it will stand: a flipped pair's strength is the negative of what it was.

    None: the remedy sets none.
    """
    if not remedy.margin:
        return [None] * len(found)
    flips = remedy.weak == "flip"
    mean_P = torch.tensor(
        [-one.mean if flips and is_weak else one.mean
         for one, is_weak in zip(found, weak, strict=True)],
        dtype=torch.float64,
    )  # fmt: skip
    margins: list[float | None] = strength_margins(
        mean_P, scale=limits.margin_scale, limit=limits.margin_limit
    ).tolist()
    return margins


def _targets(
    found: Sequence[PairStrength], weak: Sequence[bool], remedy: Remedy, limits: Limits
) -> list[float | None]:
    """None: the remedy sets none."""
    if remedy.weak == "soft":
        targets = [one.target for one in found]
    elif remedy.weak == "smooth":
        targets_P = smoothed_targets(torch.tensor(weak), label_smoothing=limits.label_smoothing)
        targets = [round(target, 6) for target in targets_P.tolist()]
    else:
        return [None] * len(found)
    return [target if is_weak else None for target, is_weak in zip(targets, weak, strict=True)]


def _change(
    pair: Comparison,
    one: PairStrength,
    weak: bool,
    margin: float | None,
    target: float | None,
    remedy: Remedy,
) -> tuple[Comparison | None, dict[str, Any] | None]:
    """The comparison as it will stand (None: dropped), and a note of what was done, if anything."""
    assert (pair.better, pair.worse) == (one.better, one.worse)
    did = "+".join(filter(None, [remedy.weak if weak else None, "margin" if remedy.margin else ""]))
    note = {"better": one.better, "worse": one.worse, "did": did, "strength": one.mean}
    if weak and remedy.weak == "drop":
        return None, note
    if weak and remedy.weak == "flip":
        pair = Comparison(one.worse, one.better)
    if margin is not None:
        pair = replace(pair, margin=margin)
    if target is not None:
        pair = replace(pair, target=target)
    return pair, note if did else None


def _rebuilt(
    one: RankedList, changes: Iterable[tuple[Comparison | None, dict[str, Any] | None]]
) -> RankedList | None:
    """The list with its changed comparisons; None where none is left."""
    changes = list(changes)
    if not any(note for _, note in changes):
        return one
    pairs = tuple(pair for pair, _ in changes if pair is not None)
    if not pairs:
        return None
    if len(one.responses) > 2 or len(pairs) > 1:
        return replace(one, pairs=pairs)
    ranks = (1, 2) if pairs[0].better == 0 else (2, 1)
    plain = pairs[0].margin == 0 and pairs[0].target == 1
    return replace(one, ranks=ranks, pairs=() if plain else pairs)


def rows_of(cleaned: Iterable[Cleaned]) -> Iterator[tuple[RankedList, dict[str, Any]]]:
    """Lists and the columns that are written beside them: `cleaned`, where something was done."""
    for one in cleaned:
        yield one.ranked, {"cleaned": one.notes} if one.notes else {}
