from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.data.batching import pad_flat, token_budget_batches

LENGTHS = st.lists(st.integers(0, 40), max_size=60)


def size(lengths, packed):
    return sum(lengths) if packed else len(lengths) * max(lengths)


@given(LENGTHS, st.integers(1, 120), st.booleans())
def test_every_row_once_sorted_and_within_the_budget(lengths, budget, packed):
    batches = token_budget_batches(lengths, budget, packed=packed)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    in_order = [lengths[i] for batch in batches for i in batch]
    assert in_order == sorted(in_order)
    for batch in batches:
        assert len(batch) == 1 or size([lengths[i] for i in batch], packed) <= budget
    array = np.array(lengths, dtype=np.int64)
    assert batches == token_budget_batches(array, budget, packed=packed)


@given(LENGTHS, st.integers(1, 120), st.booleans())
def test_no_batch_could_have_taken_the_next_row(lengths, budget, packed):
    batches = token_budget_batches(lengths, budget, packed=packed)
    for batch, following in pairwise(batches):
        assert size([lengths[i] for i in (*batch, following[0])], packed) > budget


def test_batches_by_hand():
    lengths = [5, 1, 5, 2, 20]
    assert token_budget_batches(lengths, 10, packed=False) == [[1, 3], [0, 2], [4]]
    assert token_budget_batches(lengths, 10, packed=True) == [[1, 3, 0], [2], [4]]
    assert token_budget_batches([], 10, packed=True) == []
    with pytest.raises(ValueError, match="budget is 0"):
        token_budget_batches([1], 0, packed=True)


@given(st.lists(st.lists(st.integers(0, 9), max_size=7), min_size=1, max_size=9))
def test_padding_matches_rows_even_where_they_hold_the_pad_id(rows):
    values = np.array([value for row in rows for value in row], dtype=np.int32)
    padded_BT, mask_BT = pad_flat(values, np.array([len(row) for row in rows]), 0)
    width = max(map(len, rows))
    assert padded_BT.tolist() == [r + [0] * (width - len(r)) for r in rows]
    assert mask_BT.tolist() == [[True] * len(r) + [False] * (width - len(r)) for r in rows]
    assert padded_BT.dtype == torch.int64
    assert mask_BT.dtype == torch.bool


def test_flat_floats_keep_their_type():
    padded_BT, mask_BT = pad_flat(np.array([1.5, 2.5, 3.5], np.float32), np.array([1, 0, 2]), 0.0)
    assert padded_BT.dtype == torch.float32
    assert padded_BT.tolist() == [[1.5, 0], [0, 0], [2.5, 3.5]]
    assert mask_BT.sum(dim=1).tolist() == [1, 0, 2]
    assert pad_flat(np.empty(0), np.empty(0), 3)[0].shape == (0, 0)
