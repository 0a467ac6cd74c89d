"""Rows of different length into padded batches: which rows together, and how they are laid out."""

from collections.abc import Sequence

import numpy as np
import torch

# What one more pass costs, as a share of a full batch: some hundred operations are started.
PASS_COST = 1 / 16


def token_budget_batches(lengths: Sequence[int] | np.ndarray, budget: int) -> list[list[int]]:
    """Row indices in batches whose padded size, rows × longest, is at most `budget`.

    Rows are sorted by length, ties by index, and cut where all batches together cost least: their
    padded tokens, and `PASS_COST` · budget for each. The same lengths always give the same batches.
    A row longer than `budget` stands alone. Every row is in exactly one batch.
    """
    if budget < 1:
        raise ValueError(f"a batch holds at least one token; the budget is {budget}")
    lengths = np.asarray(lengths)
    order = np.argsort(lengths, kind="stable")
    n = len(order)
    least = np.zeros(n + 1)  # cost of the first i rows
    cut = np.zeros(n + 1, np.int64)  # where the last of their batches begins
    for end in range(1, n + 1):
        longest = int(lengths[order[end - 1]])
        most = max(1, budget // longest) if longest else end
        starts = np.arange(max(0, end - most), end)
        costs = least[starts] + (end - starts) * longest + PASS_COST * budget
        best = int(costs.argmin())
        least[end], cut[end] = costs[best], starts[best]
    batches: list[list[int]] = []
    end = n
    while end:
        batches.append(order[cut[end] : end].tolist())
        end = int(cut[end])
    return batches[::-1]


def pad_right(rows: Sequence[np.ndarray], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`(input_ids_BT int64, attention_mask_BT bool)` of token rows, padded on the right."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    flat = np.concatenate(rows) if len(rows) else np.empty(0, np.int64)
    return pad_flat(flat, lengths, pad_id)


def pad_flat(
    values: np.ndarray, lengths: np.ndarray, pad: int | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(padded_BT, mask_BT bool)` of rows that lie end to end in `values`.

    Integers become int64; floats keep their type. mask_BT is True where a row has a value: it comes
    from the lengths, never from `pad`, which may be a real token (pad == eos).
    """
    longest = int(lengths.max()) if len(lengths) else 0
    mask = np.arange(longest) < np.asarray(lengths)[:, None]
    dtype = np.int64 if np.issubdtype(values.dtype, np.integer) else values.dtype
    padded = np.full(mask.shape, pad, dtype=dtype)
    padded[mask] = values
    return torch.from_numpy(padded), torch.from_numpy(mask)
