"""Masked means, moments and whitening, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algos.masked import (
    combine_moments,
    last_unmasked,
    masked_mean,
    masked_moments,
    masked_whiten,
)
from tests.algos.batches import random_batch

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=40, deadline=None)


@few
@given(seed=seeds)
def test_moments_and_whitening_are_numpys(seed):
    batch = random_batch(seed)
    x, mask = batch.a_BT, batch.mask_BT
    kept = x.numpy()[mask.numpy()]
    count, mean, var = masked_moments(x, mask)
    assert int(count) == kept.size
    assert float(mean) == pytest.approx(kept.mean(), abs=1e-12)
    assert float(var) == pytest.approx(kept.var(), abs=1e-12)
    white = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-8)
    np.testing.assert_allclose(masked_whiten(x, mask)[mask].numpy(), white, atol=1e-9)
    unshifted = masked_whiten(x, mask, shift_mean=False)[mask].numpy()
    np.testing.assert_allclose(unshifted, white + kept.mean(), atol=1e-9)


@few
@given(seed=seeds)
def test_means_along_each_dimension_are_numpys(seed):
    batch = random_batch(seed)
    masked = np.ma.array(batch.a_BT.numpy(), mask=~batch.mask_BT.numpy())
    assert float(masked_mean(batch.a_BT, batch.mask_BT)) == pytest.approx(masked.mean(), abs=1e-12)
    rows = masked_mean(batch.a_BT, batch.mask_BT, dim=1)
    np.testing.assert_allclose(rows.numpy(), masked.mean(1), atol=1e-12)
    if batch.mask_BT.any(0).all():
        columns = masked_mean(batch.a_BT, batch.mask_BT, dim=0)
        np.testing.assert_allclose(columns.numpy(), masked.mean(0), atol=1e-12)


def test_mean_pooling_counts_only_what_is_attended():
    hidden_BTD = torch.tensor([[[1.0, 10.0], [3.0, 30.0], [float("nan"), 500.0]]])
    attended_BT = torch.tensor([[1, 1, 0]])
    pooled = masked_mean(hidden_BTD, attended_BT[..., None], dim=1)
    assert pooled.tolist() == [[2.0, 20.0]]


def test_a_row_without_unmasked_element_raises_whichever_the_dimension():
    mask = torch.tensor([[True, True], [False, False]])
    for dim in (None, 0, 1, -1):
        with pytest.raises(ValueError, match=r"no unmasked position in row\(s\) \[1\]"):
            masked_mean(torch.ones(2, 2), mask, dim=dim)


def test_the_mean_of_no_rows_is_0_or_none():
    x, mask = torch.ones(0, 3), torch.ones(0, 3, dtype=torch.bool)
    assert masked_mean(x, mask).tolist() == 0
    assert masked_mean(x, mask, dim=0).tolist() == [0, 0, 0]
    assert masked_mean(x, mask, dim=1).tolist() == []


def test_a_slice_without_unmasked_element_raises():
    mask = torch.tensor([[True, False], [True, False]])
    with pytest.raises(ValueError, match="along dim=0"):
        masked_mean(torch.ones(2, 2), mask, dim=0)
    with pytest.raises(ValueError, match="no unmasked position"):
        masked_mean(torch.ones(2), torch.zeros(2, dtype=torch.bool))


def test_variance_of_equal_numbers_far_from_zero_is_zero():
    for value in (4096.3, 1000.1, 10.1):
        x = torch.full((1, 1000), value)
        mask = torch.ones_like(x, dtype=torch.bool)
        assert float(masked_moments(x, mask)[2]) == 0
        assert masked_whiten(x, mask).abs().max() == 0


def test_whitening_of_huge_numbers_and_by_plain_stats():
    x = torch.tensor([[1.0, 2.0, 4.0]])
    mask = torch.ones_like(x, dtype=torch.bool)
    torch.testing.assert_close(masked_whiten(x * 1e20, mask), masked_whiten(x, mask))
    torch.testing.assert_close(masked_whiten(x, mask, stats=(3, 2.0, 4.0)), (x - 2) / 2)
    # In float32 the mean would be off by a thousandth of the deviation.
    far = torch.tensor([[10_000.1, 10_000.2, 10_000.3]], dtype=torch.float64)
    mean, var = far.mean().item(), far.var(correction=0).item()
    whitened = masked_whiten(far, mask, stats=(3, mean, var))
    torch.testing.assert_close(whitened, (far - mean) / var**0.5, rtol=1e-6, atol=1e-9)
    assert float(masked_mean(torch.tensor(2.5), torch.tensor(True))) == 2.5


@few
@given(seed=seeds, parts=st.integers(1, 5))
def test_moments_of_parts_combine_to_those_of_the_whole(seed, parts):
    batch = random_batch(seed, rows=5)
    whole = masked_moments(batch.a_BT, batch.mask_BT)
    assigned = torch.randint(0, parts, (5,), generator=torch.Generator().manual_seed(seed))
    moments = []
    for part in range(parts):
        rows = batch.rows(assigned == part)
        moments.append(masked_moments(rows.a_BT, rows.mask_BT))
    combined = combine_moments(*zip(*moments, strict=True))
    for got, want in zip(combined, whole, strict=True):
        torch.testing.assert_close(got, want.double(), rtol=1e-12, atol=1e-12)
    with_stats = torch.cat(
        [
            masked_whiten(rows.a_BT, rows.mask_BT, stats=combined)
            for rows in (batch.rows(slice(0, 2)), batch.rows(slice(2, 5)))
        ]
    )
    torch.testing.assert_close(with_stats, masked_whiten(batch.a_BT, batch.mask_BT))


def test_a_part_without_elements_counts_for_nothing():
    nan = float("nan")
    count, mean, var = combine_moments([2.0, 0.0, 2.0], [1.0, nan, 3.0], [0.5, nan, 0.5])
    assert (float(count), float(mean), float(var)) == (4.0, 2.0, 1.5)


def test_combining_nothing_or_unequal_parts_raises():
    with pytest.raises(ValueError, match="all counts are 0"):
        combine_moments([0.0], [0.0], [0.0])
    with pytest.raises(ValueError, match="one number of each per part"):
        combine_moments([1.0, 2.0], [0.0], [0.0])


def test_whitening_with_float64_stats_keeps_float32():
    x = torch.randn(2, 3)
    mask = torch.ones(2, 3, dtype=torch.bool)
    stats = combine_moments([6.0], [0.0], [1.0])
    assert masked_whiten(x, mask, stats=stats).dtype == torch.float32


def test_gradient_of_whitening():
    batch = random_batch(11, rows=2, length=4)
    x = batch.a_BT.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: masked_whiten(x, batch.mask_BT), x)


def test_last_unmasked_position_with_holes_and_padding_on_either_side():
    mask = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    assert last_unmasked(mask).tolist() == [3, 0, 4, 4]
    with pytest.raises(ValueError, match=r"row\(s\) \[0\]"):
        last_unmasked(torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        last_unmasked(torch.ones(3, dtype=torch.bool))
