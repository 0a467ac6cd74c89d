"""What NUMERICS promises of every per-token function: masks, padding, order, dtypes, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algos.advantages import gae, per_token, reinforce_pp
from rlhf_ray.algos.kl import response_kl
from rlhf_ray.algos.losses import kl_loss, policy_loss, truncated_importance_weights, value_loss
from rlhf_ray.algos.masked import masked_mean, masked_moments, masked_whiten
from rlhf_ray.algos.rewards import shaped_rewards
from tests.algos.batches import Batch, padded, random_batch, with_junk, without_holes

# name -> what it makes of a batch, as a tuple of tensors: [B, T], [B] or scalars.
CASES = {
    "masked_mean": lambda b: (masked_mean(b.a_BT, b.mask_BT),),
    "masked_mean_rows": lambda b: (masked_mean(b.a_BT, b.mask_BT, 1),),
    "masked_moments": lambda b: masked_moments(b.a_BT, b.mask_BT)[1:],
    "masked_whiten": lambda b: (masked_whiten(b.a_BT, b.mask_BT),),
    "masked_whiten_unshifted": lambda b: (masked_whiten(b.a_BT, b.mask_BT, shift_mean=False),),
    "response_kl": lambda b: tuple(
        response_kl(b.a_BT, b.b_BT, b.mask_BT, kind=kind) for kind in ("k1", "k2", "k3")
    ),
    "shaped_rewards": lambda b: tuple(
        shaped_rewards(b.scores_B, b.a_BT, b.b_BT, b.mask_BT, kl_coef=0.3, kl_kind=kind)
        for kind in ("k1", "k2", "k3")
    ),
    "gae": lambda b: gae(b.a_BT, b.b_BT, b.mask_BT, gamma=0.9, lam=0.8),
    "reinforce_pp": lambda b: reinforce_pp(b.a_BT, b.mask_BT, gamma=0.9),
    "per_token": lambda b: (per_token(b.scores_B, b.mask_BT),),
    "policy_loss": lambda b: policy_loss(b.a_BT, b.b_BT, b.c_BT, b.mask_BT)[:1],
    "policy_loss_dual": lambda b: policy_loss(
        b.a_BT, b.b_BT, b.c_BT, b.mask_BT, dual_clip=1.5, weights_BT=b.b_BT.abs()
    )[:1],
    "value_loss": lambda b: value_loss(b.a_BT, b.b_BT, b.c_BT, b.mask_BT)[:1],
    "kl_loss": lambda b: kl_loss(b.a_BT, b.b_BT, b.mask_BT)[:1],
    "importance_weights": lambda b: (truncated_importance_weights(b.a_BT, b.b_BT, b.mask_BT),),
}
DIAGNOSTICS = {
    "policy_loss": lambda b: policy_loss(b.a_BT, b.b_BT, b.c_BT, b.mask_BT)[1],
    "value_loss": lambda b: value_loss(b.a_BT, b.b_BT, b.c_BT, b.mask_BT)[1],
    "kl_loss": lambda b: kl_loss(b.a_BT, b.b_BT, b.mask_BT)[1],
}
every_case = pytest.mark.parametrize("case", CASES)
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=15, deadline=None)


def assert_close(got, want) -> None:
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def gradients(case: str, batch: Batch) -> list[torch.Tensor]:
    """d(weighted sum of the outputs)/d(inputs), zeros where an input is not used."""
    tracked = batch.tracked()
    outputs = [out for out in CASES[case](tracked) if out.requires_grad]
    if not outputs:
        return [torch.zeros_like(x) for x in batch.inputs]
    total = sum((out * torch.arange(1.0, out.numel() + 1).view(out.shape)).sum() for out in outputs)
    found = torch.autograd.grad(total, tracked.inputs, allow_unused=True)
    return [
        torch.zeros_like(x) if g is None else g for x, g in zip(batch.inputs, found, strict=True)
    ]


@every_case
@few
@given(seed=seeds)
def test_what_is_masked_reaches_neither_value_nor_gradient(case, seed):
    clean = random_batch(seed)
    spoilt = with_junk(clean, seed)
    for got, want in zip(CASES[case](spoilt), CASES[case](clean), strict=True):
        assert torch.equal(got, want)
        assert got.isfinite().all()
        if got.shape == clean.mask_BT.shape:
            assert (got[~clean.mask_BT] == 0).all()
    for got, want in zip(gradients(case, spoilt), gradients(case, clean), strict=True):
        assert torch.equal(got, want)
        assert got.isfinite().all()
        if got.ndim == 2:
            assert (got[~clean.mask_BT] == 0).all()


@pytest.mark.parametrize("case", DIAGNOSTICS)
@few
@given(seed=seeds)
def test_diagnostics_ignore_what_is_masked_and_where_the_padding_is(case, seed):
    clean = random_batch(seed)
    want = DIAGNOSTICS[case](clean)
    for same in (with_junk(clean, seed), padded(clean, 2, 3)):
        got = DIAGNOSTICS[case](same)
        assert got.keys() == want.keys()
        for key in want:
            assert got[key].dtype == torch.float64 and not got[key].requires_grad
            assert_close(got[key], want[key])


@every_case
@few
@given(seed=seeds, left=st.integers(0, 9), right=st.integers(0, 9))
def test_padding_on_either_side_changes_nothing(case, seed, left, right):
    batch = random_batch(seed)
    length = batch.mask_BT.shape[1]
    for got, want in zip(CASES[case](padded(batch, left, right)), CASES[case](batch), strict=True):
        if want.shape == batch.mask_BT.shape:
            assert (got[:, :left] == 0).all() and (got[:, left + length :] == 0).all()
            got = got[:, left : left + length]
        assert_close(got, want)


@pytest.mark.parametrize("case", ["gae", "reinforce_pp", "shaped_rewards"])
@few
@given(seed=seeds, left=st.integers(0, 9), right=st.integers(0, 40))
def test_padding_changes_no_bit_of_a_row(case, seed, left, right):
    batch = random_batch(seed).cast(torch.float32)
    length = batch.mask_BT.shape[1]
    for got, want in zip(CASES[case](padded(batch, left, right)), CASES[case](batch), strict=True):
        assert torch.equal(got[:, left : left + length], want)


@every_case
@few
@given(seed=seeds)
def test_holes_cost_nothing(case, seed):
    batch = random_batch(seed)
    packed = without_holes(batch)
    for got, want in zip(CASES[case](batch), CASES[case](packed), strict=True):
        if want.shape == batch.mask_BT.shape:
            assert_close(got[batch.mask_BT], want[packed.mask_BT])
        else:
            assert_close(got, want)


@every_case
@few
@given(seed=seeds, shuffle=st.randoms(use_true_random=False))
def test_permuting_rows_permutes_results(case, seed, shuffle):
    batch = random_batch(seed)
    order = list(range(len(batch.mask_BT)))
    shuffle.shuffle(order)
    for got, want in zip(CASES[case](batch.rows(order)), CASES[case](batch), strict=True):
        assert_close(got, want[order] if want.ndim else want)


@every_case
def test_a_row_without_unmasked_position_raises(case):
    batch = random_batch(1, rows=3, length=4)
    batch.mask_BT[1] = False
    with pytest.raises(
        ValueError, match=r"no unmasked position in row\(s\) \[1\]|without an unmasked"
    ):
        CASES[case](batch)


@every_case
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_low_precision_in_float32_out(case, low):
    batch = random_batch(2, rows=4, length=6).cast(low)
    widened = batch.cast(torch.float32)
    for got, want in zip(CASES[case](batch), CASES[case](widened), strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, want)


@every_case
def test_float64_in_float64_out(case):
    for out in CASES[case](random_batch(3)):
        assert out.dtype == torch.float64


@every_case
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int64, torch.bfloat16, torch.float32, torch.float64]
)
def test_a_mask_of_0_and_1_is_a_mask_in_any_dtype(case, dtype):
    batch = random_batch(4)
    as_numbers = replace(batch, mask_BT=batch.mask_BT.to(dtype))
    for got, want in zip(CASES[case](as_numbers), CASES[case](batch), strict=True):
        assert torch.equal(got, want) and got.dtype == want.dtype


@every_case
@pytest.mark.parametrize("value", [2, -1, 255, 0.5, float("nan"), float("inf")])
def test_a_mask_of_other_numbers_raises(case, value):
    batch = random_batch(4)
    mask_BT = torch.where(batch.mask_BT, torch.tensor(value), 0)
    with pytest.raises(ValueError, match=r"mask.* other than 0 and 1.*\.bool\(\)"):
        CASES[case](replace(batch, mask_BT=mask_BT))


@every_case
def test_each_result_has_memory_of_its_own(case):
    batch = random_batch(9, rows=3, length=1)
    given, results = (
        [x.untyped_storage().data_ptr() for x in tensors]
        for tensors in ((*batch.inputs, batch.mask_BT), CASES[case](batch))
    )
    assert len(set(results)) == len(results) and not set(results) & set(given)


@every_case
def test_another_shape_raises(case):
    batch = random_batch(5, rows=3, length=4)
    with pytest.raises(ValueError, match=r"shape|rows|scores"):
        CASES[case](replace(batch, mask_BT=torch.ones(2, 5, dtype=torch.bool)))


@every_case
def test_integer_tensors_raise(case):
    batch = random_batch(6, rows=2, length=3)
    integers = Batch(*(x.long() for x in batch.inputs), batch.mask_BT)
    with pytest.raises(ValueError, match=r"dtype torch\.int64, but a floating point"):
        CASES[case](integers)


@every_case
def test_no_rows_at_all_is_no_error(case):
    for out in CASES[case](random_batch(7).rows(slice(0, 0))):
        assert out.isfinite().all() and (out.ndim == 0 or len(out) == 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
@every_case
def test_a_gpu_gives_what_the_cpu_gives(case):
    batch = random_batch(8, rows=5, length=9)
    moved = Batch(*(x.cuda() for x in batch.inputs), batch.mask_BT.cuda())
    for got, want in zip(CASES[case](moved), CASES[case](batch), strict=True):
        assert got.is_cuda
        torch.testing.assert_close(got.cpu(), want, rtol=1e-9, atol=1e-10)
