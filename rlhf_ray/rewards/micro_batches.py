"""A batch of token rows, scored in micro-batches under a token budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlhf_ray.config import Dtype
from rlhf_ray.data.batching import token_budget_batches
from rlhf_ray.models.device import device_here
from rlhf_ray.models.loading import compute_dtype
from rlhf_ray.models.packing import PackedRows

MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 65_536}  # of one forward pass


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and how a model scores: its dtype, its device, and the tokens of one forward pass."""

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    micro_batch_tokens: int = 1024
    trust_remote_code: bool = False

    @classmethod
    def on(cls, device: str | None, dtype: Dtype, *, trust_remote_code: bool) -> "Compute":
        """What a scorer computes with. device None: see `device_here`."""
        device = device or device_here()
        tokens = MICRO_BATCH_TOKENS[torch.device(device).type]
        return cls(compute_dtype(dtype, device), device, tokens, trust_remote_code)


@torch.inference_mode()
def score_rows(
    rows: Sequence[np.ndarray],
    score: Callable[[PackedRows], torch.Tensor],
    *,
    packed: bool,
    compute: Compute,
) -> np.ndarray:
    """`score(rows) -> scores_B` of all rows, in their order. Returns float32 [N].

    packed: whether `score` runs them without padding. Which row meets which others depends on the
    lengths of these rows alone, so the scores of a shard are the same whoever computes them.
    """
    scores = np.empty(len(rows), dtype=np.float32)
    lengths = [len(row) for row in rows]
    for indices in token_budget_batches(lengths, compute.micro_batch_tokens, packed=packed):
        scores_B = score(PackedRows.of([rows[i] for i in indices], compute.device))
        scores[indices] = scores_B.float().cpu().numpy()
    return scores
