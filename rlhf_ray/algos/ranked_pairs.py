"""Which pairs a set of ranked lists holds: ragged, with ties, without a loop over lists.

Shapes: N completions, P pairs, L lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algos.checks import check_ids


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of completions of one list.

    Attributes:
        first_P, second_P: int64 [P], indices of completions.
        list_P: int64 [P], index of the list, from 0 in the order of its id.
        lists: L, the number of lists.
    """

    first_P: Tensor
    second_P: Tensor
    list_P: Tensor
    lists: int

    def count_L(self) -> Tensor:
        """Number of pairs in each list, int64 [L]."""
        return self.list_P.bincount(minlength=self.lists)

    def keep(self, keep_P: Tensor) -> Pairs:
        """The pairs for which keep_P is True."""
        return Pairs(self.first_P[keep_P], self.second_P[keep_P], self.list_P[keep_P], self.lists)


def all_pairs(list_ids_N: Tensor) -> Pairs:
    """Each pair of each list once, with the one that comes first in the input as `first`.

    Sorted by list, completion p of a list of k is paired with the k − 1 − p after it.

    Args:
        list_ids_N: integers [N]; the members of a list need not be adjacent.
    """
    device = list_ids_N.device
    _, list_N, sizes_L = torch.unique(list_ids_N, return_inverse=True, return_counts=True)
    list_N, order_N = list_N.sort(stable=True)
    rows_N = torch.arange(len(list_N), device=device)
    following_N = sizes_L.cumsum(0)[list_N] - 1 - rows_N
    first_P = rows_N.repeat_interleave(following_N)
    starts_N = following_N.cumsum(0) - following_N
    step_P = torch.arange(len(first_P), device=device) - starts_N[first_P]
    second_P = first_P + 1 + step_P
    return Pairs(order_N[first_P], order_N[second_P], list_N[first_P], len(sizes_L))


def rank_order(pairs: Pairs, ranks_N: Tensor | None) -> Tensor:
    """+1 where `first` ranks better than `second`, −1 where worse, 0 at a tie; int64 [P].

    Without ranks the input is in rank order, best first.
    """
    if ranks_N is None:
        return torch.ones_like(pairs.first_P)
    first_P, second_P = ranks_N[pairs.first_P], ranks_N[pairs.second_P]
    return (first_P < second_P).long() - (first_P > second_P).long()


def ranked_pairs(list_ids_N: Tensor, ranks_N: Tensor | None = None) -> Pairs:
    """Pairs of unequal rank, the better one as `first`; pairs of equal rank are dropped.

    Args:
        list_ids_N: integers [N].
        ranks_N: integers or floats [N], smaller is better; None when the input is in rank order,
            best first, within each list.

    Raises: ValueError for ids that are not integers, ranks of another shape or not finite.
    """
    check_ranks(list_ids_N, ranks_N)
    pairs = all_pairs(list_ids_N)
    order_P = rank_order(pairs, ranks_N)
    swapped_P = order_P < 0
    better_first = Pairs(
        torch.where(swapped_P, pairs.second_P, pairs.first_P),
        torch.where(swapped_P, pairs.first_P, pairs.second_P),
        pairs.list_P,
        pairs.lists,
    )
    return better_first if ranks_N is None else better_first.keep(order_P != 0)


def check_ranks(list_ids_N: Tensor, ranks_N: Tensor | None) -> None:
    """Raises ValueError for ids that are not integers [N], or ranks that do not fit them."""
    if list_ids_N.ndim != 1:
        raise ValueError(
            f"list_ids_N has shape {tuple(list_ids_N.shape)}, but [N] is needed; flatten the lists"
        )
    check_ids(list_ids_N, list_ids_N=list_ids_N)
    if ranks_N is None:
        return
    if ranks_N.shape != list_ids_N.shape:
        raise ValueError(
            f"ranks_N has shape {tuple(ranks_N.shape)} and list_ids_N {tuple(list_ids_N.shape)}; "
            "give one rank a completion"
        )
    if not bool(ranks_N.isfinite().all()):
        raise ValueError("ranks_N holds NaN or inf; leave out completions without a rank")
