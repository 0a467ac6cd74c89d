"""Ranked lists as token rows, and a reward model's verdict on them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_ray.algos.ranking import (
    exact_order,
    expected_calibration_error,
    gap_moments,
    kendall_tau_b,
    pair_accuracy,
    score_gaps,
)
from rlhf_ray.data.batching import pad_right, token_budget_batches
from rlhf_ray.data.ranked_list import RankedList
from rlhf_ray.data.tokenise import TokenRows, tokenise_pairs
from rlhf_ray.models.reward_model import RewardModel

# Rows of like length go together; smaller pads less, larger has fewer and longer matrix products.
FORWARD_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class RankedData:
    """L lists with N texts in all, list after list.

    list_ids_N and ranks_N (smaller is better) are int64; starts: each list's first text, and N.
    """

    rows: TokenRows
    list_ids_N: Tensor
    ranks_N: Tensor
    starts: np.ndarray

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


def tokenise_lists(
    tokenizer: PreTrainedTokenizerBase, lists: list[RankedList], *, max_tokens: int
) -> RankedData:
    """Every response after its prompt, ended by EOS."""
    sizes = [len(one.responses) for one in lists]
    rows = tokenise_pairs(
        tokenizer,
        [one.prompt for one in lists for _ in one.responses],
        [response for one in lists for response in one.responses],
        max_tokens=max_tokens,
    )
    return RankedData(
        rows=rows,
        list_ids_N=torch.repeat_interleave(torch.tensor(sizes, dtype=torch.long)),
        ranks_N=torch.tensor([rank for one in lists for rank in one.ranks], dtype=torch.long),
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    )


def scores_of(model: RewardModel, rows: TokenRows, texts: list[int], *, pad_id: int) -> Tensor:
    """Raw scores [len(texts)] in the order of `texts`, with gradient where it is on.

    One forward a text: texts of like length share a batch, whatever list they belong to.
    """
    device = model.head.weight.device
    batches = token_budget_batches(rows.lengths[texts], FORWARD_TOKENS)
    parts = []
    for picked in batches:
        input_ids_BT, mask_BT = pad_right([rows.token_ids[texts[i]] for i in picked], pad_id)
        parts.append(model(input_ids_BT.to(device), mask_BT.to(device)))
    order = torch.tensor([i for picked in batches for i in picked], device=device)
    return torch.cat(parts)[order.argsort()]


@torch.inference_mode()
def evaluate_lists(model: RewardModel, data: RankedData, *, pad_id: int) -> dict[str, float]:
    """How well `model` orders `data`; the metrics of `algos/ranking_metrics.py`. Dropout off.

    Ties of the model count as wrong.
    """
    was_training = model.training
    model.eval()
    texts = list(range(len(data.rows)))
    scores_N = scores_of(model, data.rows, texts, pad_id=pad_id).cpu()
    model.train(was_training)
    lists = {"list_ids_N": data.list_ids_N, "ranks_N": data.ranks_N}
    gaps_P = score_gaps(scores_N, **lists)
    mean, std = gap_moments(gaps_P)
    return {
        "heldout/pair_accuracy": float(pair_accuracy(gaps_P)),
        "heldout/exact_order": float(exact_order(scores_N, **lists)),
        "heldout/kendall_tau": float(kendall_tau_b(scores_N, **lists)),
        "heldout/gap_mean": float(mean),
        "heldout/gap_std": float(std),
        "heldout/calibration_error": float(expected_calibration_error(gaps_P)),
    }
