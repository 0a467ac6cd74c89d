from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.data.batching import pad_flat, pad_right, token_budget_batches

LENGTHS = st.lists(st.integers(0, 40), max_size=60)


@given(LENGTHS, st.integers(1, 120))
def test_every_row_once_sorted_and_within_the_budget(lengths, budget):
    batches = token_budget_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    in_order = [lengths[i] for batch in batches for i in batch]
    assert in_order == sorted(in_order)
    for batch in batches:
        assert batch
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= budget or len(batch) == 1
    assert batches == token_budget_batches(np.array(lengths, dtype=np.int64), budget)


@given(LENGTHS, st.integers(1, 120))
def test_no_batch_could_have_taken_the_next_row(lengths, budget):
    batches = token_budget_batches(lengths, budget)
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * lengths[following[0]] > budget


def test_batches_by_hand():
    assert token_budget_batches([5, 1, 5, 2, 20], 10) == [[1, 3], [0, 2], [4]]
    assert token_budget_batches([], 10) == []
    with pytest.raises(ValueError, match="budget is 0"):
        token_budget_batches([1], 0)


@given(st.lists(st.lists(st.integers(0, 9), max_size=7), min_size=1, max_size=9))
def test_padding_matches_rows_even_where_they_hold_the_pad_id(rows):
    padded_BT, mask_BT = pad_right([np.array(r, dtype=np.int32) for r in rows], pad_id=0)
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
    empty_BT, _ = pad_right([], pad_id=3)
    assert empty_BT.shape == (0, 0)
