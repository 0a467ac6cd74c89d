"""Rows of different length into batches: which rows together, and how they are padded."""

from collections.abc import Sequence

import numpy as np
import torch


def token_budget_batches(
    lengths: Sequence[int] | np.ndarray, budget: int, *, packed: bool
) -> list[list[int]]:
    """Row indices in batches of at most `budget` tokens: packed, the sum of the rows' lengths;
    otherwise rows × longest.

    Rows are sorted by length, ties by index, and batches filled in that order, so that the same
    lengths always give the same batches. A row longer than `budget` stands alone. Every row is in
    exactly one batch.
    """
    if budget < 1:
        raise ValueError(f"a batch holds at least one token; the budget is {budget}")
    lengths = np.asarray(lengths)
    batches: list[list[int]] = []
    current: list[int] = []
    total = 0
    for index in np.argsort(lengths, kind="stable").tolist():
        length = int(lengths[index])
        size = total + length if packed else (len(current) + 1) * length
        if current and size > budget:
            batches.append(current)
            current, total = [], 0
        current.append(index)
        total += length
    if current:
        batches.append(current)
    return batches


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
