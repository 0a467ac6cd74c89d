"""A human ranking of responses, and a set of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.data.faults import Loaded


@dataclass(frozen=True, slots=True)
class Comparison:
    """One pair of a list: places of the better and of the worse response in it.

    margin: the score gap that is asked for; target: the probability that the label is right.
    """

    better: int
    worse: int
    margin: float = 0.0
    target: float = 1.0

    def __post_init__(self) -> None:
        if self.better == self.worse:
            raise ValueError(f"response {self.better} is compared with itself")
        if not math.isfinite(self.margin) or not 0 <= self.target <= 1:
            raise ValueError(
                f"a pair has margin {self.margin} and target {self.target}: a margin is a number, "
                f"a target a probability"
            )


@dataclass(frozen=True, slots=True)
class RankedList:
    """Responses to one prompt and their ranks: smaller is better, equal is a tie.

    pairs: what a reward model is trained on, where it is not simply every pair of unequal rank.
    prompt: what stands before every response, "" for plain texts. group: the first turn of the
    conversation, as it was before a chat template; lists of one group are never split apart.
    """

    prompt: str
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    source: str
    line: int
    annotator: str | None = None
    time: str | None = None
    group: str = ""
    pairs: tuple[Comparison, ...] = ()

    def __post_init__(self) -> None:
        if len(self.responses) != len(self.ranks):
            raise ValueError(f"{len(self.responses)} responses and {len(self.ranks)} ranks")
        if not has_pair(self.responses, self.ranks):
            raise ValueError("no two different responses have different ranks: nothing to learn")
        for pair in self.pairs:
            if not all(0 <= place < len(self.responses) for place in (pair.better, pair.worse)):
                raise ValueError(f"{pair} names a response beyond the {len(self.responses)} here")

    def comparisons(self) -> tuple[Comparison, ...]:
        """`pairs`, or without any every pair of unequal rank, in the order of the responses."""
        if self.pairs:
            return self.pairs
        places = range(len(self.ranks))
        ordered = [
            (i, j) if self.ranks[i] < self.ranks[j] else (j, i)
            for i in places
            for j in places[i + 1 :]
            if self.ranks[i] != self.ranks[j]
        ]
        return tuple(Comparison(*pair) for pair in ordered)


PreferenceSet = Loaded[RankedList]  # the lists of a file or of a mixture


def has_pair(responses: Sequence[str], ranks: Sequence[int]) -> bool:
    """Whether two different responses have different ranks."""
    places = list(zip(responses, ranks, strict=True))
    return any(a != b and i != j for a, i in places for b, j in places)
