"""A batch of token rows, scored in padded micro-batches under a token budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlhf_ray.data.batching import pad_right, token_budget_batches


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and how a model scores: its dtype, its device, and the tokens of one forward pass."""

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    micro_batch_tokens: int = 1024
    trust_remote_code: bool = False


@torch.inference_mode()
def score_rows(
    rows: Sequence[np.ndarray],
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    pad_token_id: int,
    compute: Compute,
) -> np.ndarray:
    """`score(input_ids_BT int64, attention_mask_BT bool) -> scores_B` of all rows, in their order.

    Rows are right-padded. Which row meets which others depends on the lengths of these rows alone,
    so the scores of a shard are the same whoever computes them. Returns float32 [N].
    """
    scores = np.empty(len(rows), dtype=np.float32)
    for indices in token_budget_batches([len(row) for row in rows], compute.micro_batch_tokens):
        ids_BT, mask_BT = pad_right([rows[i] for i in indices], pad_token_id)
        scores_B = score(ids_BT.to(compute.device), mask_BT.to(compute.device))
        scores[indices] = scores_B.float().cpu().numpy()
    return scores
