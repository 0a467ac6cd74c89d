"""The language model loss of some tokens of rows that lie end to end."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_ray.models.indexing import take
from rlhf_ray.models.logprobs import HeadShape, response_logprobs
from rlhf_ray.models.packing import PackedRows


def nll_sum(
    hidden_ND: Tensor,
    rows: PackedRows,
    trained: Mapping[int, np.ndarray],
    head: nn.Module,
    shape: HeadShape,
) -> Tensor:
    """Σ over trained tokens of −log p(token | those before it in its row), float32.

    trained: a row's place in `rows` -> bool, which of its tokens count. The first of a row never
    does: nothing is before it. Logits are made for what counts alone.
    """
    starts = rows.starts
    places = [starts[row] + np.flatnonzero(mask[1:]) for row, mask in trained.items()]
    index_N = torch.from_numpy(np.concatenate(places)).to(hidden_ND.device)
    logprobs_N, _ = response_logprobs(
        take(hidden_ND, index_N), head, rows.ids_N[index_N + 1], shape=shape
    )
    return -logprobs_N.sum()
