"""Held-out lists that training cannot have seen: what shares a dialogue or a text stays whole."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rlhf_ray.data.ids import stable_hash
from rlhf_ray.data.ranked_list import RankedList
from rlhf_ray.data.split import heldout_mask

# A first turn shared by so many lists, and by more than a tenth of them, is an instruction.
INSTRUCTION_LISTS = 20


def split_lists(
    lists: Sequence[RankedList],
    fraction: float,
    seed: int,
    *,
    instead: str = "set --data.heldout-fraction 0",
) -> tuple[list[RankedList], list[RankedList]]:
    """`(train, heldout)`, about `fraction` of the groups held out, decided by hashes.

    Two lists are of one group if they share the first turn of their conversation or a whole text
    (prompt + response), directly or through other lists. A first turn shared by over a tenth of all
    lists (and at least 20) is an instruction and binds nothing. instead: what else to do where one
    group cannot be split, for the message.
    """
    groups = _groups(lists, _instructions(lists))
    held = heldout_mask(
        groups,
        fraction,
        seed,
        source=lists[0].source if lists else "",
        what="group of lists that share texts or first turns",
        instead=instead,
    )
    sides: tuple[list[RankedList], list[RankedList]] = ([], [])
    for one, is_held in zip(lists, held, strict=True):
        sides[is_held].append(one)
    return sides


def folds_of(lists: Sequence[RankedList], folds: int, seed: tuple[int, ...]) -> list[int]:
    """A fold (0 to folds − 1) for each list; a group (see `split_lists`) stays together."""
    groups = _groups(lists, _instructions(lists))
    return [stable_hash(*seed, "fold", group) % folds for group in groups]


def leaks(train: Sequence[RankedList], test: Sequence[RankedList]) -> list[str]:
    """First turns and texts that are on both sides, sorted; none after `split_lists`."""
    instructions = _instructions([*train, *test])
    known = {key for one in train for key in _keys(one, instructions)}
    shared = {key for one in test for key in _keys(one, instructions)} & known
    return sorted(text for _, text in shared)


def _keys(one: RankedList, instructions: set[str]) -> Iterator[tuple[str, str]]:
    if (turn := _first_turn(one)) and turn not in instructions:
        yield "turn", turn
    for response in one.responses:
        yield "text", one.prompt + response


def _first_turn(one: RankedList) -> str:
    return one.group or one.prompt


def _instructions(lists: Sequence[RankedList]) -> set[str]:
    counts = Counter(map(_first_turn, lists))
    return {
        turn
        for turn, count in counts.items()
        if count >= INSTRUCTION_LISTS and count * 10 > len(lists)
    }


def _groups(lists: Sequence[RankedList], instructions: set[str]) -> list[str]:
    """A name for each list's group: the smallest text of it (union-find over shared keys)."""
    parent = list(range(len(lists)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    owner: dict[tuple[str, str], int] = {}
    for i, one in enumerate(lists):
        for key in _keys(one, instructions):
            parent[root(i)] = root(owner.setdefault(key, i))
    names: dict[int, str] = {}
    for i, one in enumerate(lists):
        smallest = min(one.prompt + response for response in one.responses)
        names[root(i)] = min(names.get(root(i), smallest), smallest)
    return [names[root(i)] for i in range(len(lists))]
