"""Ranked lists as token rows, and their forward passes: K texts cost K forwards.

Shapes: L lists, N texts, P pairs, D features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_ray.algos.ranked_pairs import Pairs
from rlhf_ray.data.batching import token_budget_batches
from rlhf_ray.data.ranked_list import RankedList
from rlhf_ray.data.tokenise import TokenRows, tokenise_pairs
from rlhf_ray.models.packing import PackedRows, packs
from rlhf_ray.models.reward_model import Encoded, RewardModel

# Of one forward pass. A larger one leaves the processor's cache.
FORWARD_TOKENS = {"cpu": 2048, "cuda": 32_768}


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Pairs of some texts; margins, targets float32 [P]; targets None where all labels are sure."""

    pairs: Pairs
    margin_P: Tensor
    target_P: Tensor | None

    def to(self, device: torch.device) -> "Comparisons":
        """The same on `device`."""
        pairs = Pairs(
            self.pairs.first_P.to(device),
            self.pairs.second_P.to(device),
            self.pairs.list_P.to(device),
            self.pairs.lists,
        )
        target_P = None if self.target_P is None else self.target_P.to(device)
        return Comparisons(pairs, self.margin_P.to(device), target_P)


@dataclass(frozen=True, slots=True)
class RankedData:
    """L lists with N texts in all, list after list.

    list_ids_N and ranks_N (smaller is better) are int64; starts: each list's first text, and N.
    better_P, worse_P: texts of each pair, list after list, from pair_starts (int64 [L + 1]) on.
    """

    rows: TokenRows
    list_ids_N: Tensor
    ranks_N: Tensor
    starts: np.ndarray
    better_P: np.ndarray
    worse_P: np.ndarray
    margin_P: np.ndarray
    target_P: np.ndarray
    pair_starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def list_tokens(self) -> np.ndarray:
        """Tokens of each list, int64 [L]."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat(self.rows.lengths, self.starts[:-1])

    def texts_of(self, lists: list[int]) -> list[int]:
        """Indices of the texts of some lists, in order."""
        return [n for i in lists for n in range(self.starts[i], self.starts[i + 1])]

    def best_of(self, lists: list[int]) -> list[int]:
        """Indices of the first text of best rank of each of some lists."""
        ranks = self.ranks_N.numpy()
        return [
            int(self.starts[i] + ranks[self.starts[i] : self.starts[i + 1]].argmin()) for i in lists
        ]

    def comparisons_of(self, lists: list[int]) -> Comparisons:
        """The pairs of some lists; texts are counted as `texts_of` gives them."""
        sizes = np.diff(self.starts)[lists]
        shift = np.cumsum(sizes) - sizes - self.starts[lists]
        counts = np.diff(self.pair_starts)[lists]
        spans = zip(self.pair_starts[lists], self.pair_starts[np.array(lists) + 1], strict=True)
        chosen = np.fromiter(chain.from_iterable(range(a, b) for a, b in spans), np.int64)
        shift_P = np.repeat(shift, counts)
        list_P = np.repeat(np.arange(len(lists)), counts)
        target_P = self.target_P[chosen]
        return Comparisons(
            Pairs(
                torch.from_numpy(self.better_P[chosen] + shift_P),
                torch.from_numpy(self.worse_P[chosen] + shift_P),
                torch.from_numpy(list_P),
                len(lists),
            ),
            torch.from_numpy(self.margin_P[chosen]),
            torch.from_numpy(target_P) if (target_P < 1).any() else None,
        )


def tokenise_lists(
    tokenizer: PreTrainedTokenizerBase, lists: list[RankedList], *, max_tokens: int
) -> RankedData:
    """Every response after its prompt, ended by EOS."""
    sizes = [len(one.responses) for one in lists]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows = tokenise_pairs(
        tokenizer,
        [one.prompt for one in lists for _ in one.responses],
        [response for one in lists for response in one.responses],
        max_tokens=max_tokens,
    )
    compared = [one.comparisons() for one in lists]
    flat = [pair for pairs in compared for pair in pairs]
    start_P = np.repeat(starts[:-1], [len(pairs) for pairs in compared])
    return RankedData(
        rows=rows,
        list_ids_N=torch.repeat_interleave(torch.tensor(sizes, dtype=torch.long)),
        ranks_N=torch.tensor([rank for one in lists for rank in one.ranks], dtype=torch.long),
        starts=starts,
        better_P=start_P + np.array([pair.better for pair in flat], np.int64),
        worse_P=start_P + np.array([pair.worse for pair in flat], np.int64),
        margin_P=np.array([pair.margin for pair in flat], np.float32),
        target_P=np.array([pair.target for pair in flat], np.float32),
        pair_starts=np.concatenate([[0], np.cumsum([len(p) for p in compared])]).astype(np.int64),
    )


def forwards(
    model: RewardModel, rows: TokenRows, texts: list[int]
) -> Iterator[tuple[list[int], PackedRows, Encoded]]:
    """Forward passes of `texts`: which of them (places in `texts`), as rows, and what came out.

    One forward a text: texts of like length share a pass, whatever list they belong to.
    """
    device, packed = model.head.weight.device, packs(model.backbone)
    budget = FORWARD_TOKENS[device.type]
    for picked in token_budget_batches(rows.lengths[texts], budget, packed=packed):
        together = PackedRows.of([rows.token_ids[texts[i]] for i in picked], device)
        yield picked, together, model.encode(together)


def in_order(parts_ND: list[Tensor], picked: list[list[int]]) -> Tensor:
    """The rows of all parts, put back in the order of the texts."""
    order = torch.tensor([i for some in picked for i in some], device=parts_ND[0].device)
    return torch.cat(parts_ND)[order.argsort()]


def scores_of(model: RewardModel, rows: TokenRows, texts: list[int]) -> Tensor:
    """Raw scores [len(texts)] in the order of `texts`, with gradient where it is on."""
    parts, picked = [], []
    for some, _, encoded in forwards(model, rows, texts):
        parts.append(model.score_features(encoded.features_BD))
        picked.append(some)
    return in_order(parts, picked)


@torch.inference_mode()
def score_all(model: RewardModel, rows: TokenRows) -> Tensor:
    """Raw scores float32 [N] of all rows, on the CPU; dropout off."""
    was_training = model.training
    model.eval()
    scores_N = scores_of(model, rows, list(range(len(rows)))).cpu()
    model.train(was_training)
    return scores_N
