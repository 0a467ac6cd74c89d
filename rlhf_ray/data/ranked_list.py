"""A human ranking of responses, and a set of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RankedList:
    """Responses to one prompt and their ranks: smaller is better, equal is a tie.

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

    def __post_init__(self) -> None:
        if len(self.responses) != len(self.ranks):
            raise ValueError(f"{len(self.responses)} responses and {len(self.ranks)} ranks")
        if not has_pair(self.responses, self.ranks):
            raise ValueError("no two different responses have different ranks: nothing to learn")


@dataclass(frozen=True, slots=True)
class PreferenceSet(Sequence[RankedList]):
    """The lists of a file or of a mixture, and how many rows were bad."""

    lists: tuple[RankedList, ...]
    bad_rows: int

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: Any) -> Any:
        return self.lists[index]


def has_pair(responses: Sequence[str], ranks: Sequence[int]) -> bool:
    """Whether two different responses have different ranks."""
    places = list(zip(responses, ranks, strict=True))
    return any(a != b and i != j for a, i in places for b, j in places)
