"""Policy, value and KL losses: oracles, gradients, splits, and one optimizer step."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algos.losses import (
    combine_diagnostics,
    explained_variance,
    kl_loss,
    policy_loss,
    truncated_importance_weights,
    value_loss,
)
from tests.algos.batches import random_batch, with_junk

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=40, deadline=None)
INF = float("inf")


def unmasked(batch, *extra):
    """One tuple (a, b, c, *extra) for each unmasked position."""
    columns = [x[batch.mask_BT].tolist() for x in (batch.a_BT, batch.b_BT, batch.c_BT, *extra)]
    return list(zip(*columns, strict=True))


def policy_by_hand(tokens, low, high, dual):
    total, sums = 0.0, {"clipped": 0, "dual_clipped": 0, "k1": 0.0, "k3": 0.0, "ratio": 0.0}
    biggest = 0.0
    for new, old, advantage, weight in tokens:
        ratio = math.exp(new - old)
        free, bound = ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage
        objective = min(free, bound)
        sums["clipped"] += bound < free
        if dual is not None and advantage < 0:
            sums["dual_clipped"] += objective < dual * advantage
            objective = max(objective, dual * advantage)
        total -= weight * objective
        sums["k1"] += old - new
        sums["k3"] += ratio - 1 - (new - old)
        sums["ratio"] += ratio
        biggest = max(biggest, ratio)
    return total / len(tokens), sums | {"ratio_max": biggest, "tokens": len(tokens)}


@few
@given(
    seed=seeds,
    low=st.sampled_from([0.1, 0.2, INF]),
    high=st.sampled_from([0.2, 0.3, INF]),
    dual=st.sampled_from([None, 1.2, 3.0]),
    weighted=st.booleans(),
)
def test_policy_loss_against_plain_python(seed, low, high, dual, weighted):
    batch = random_batch(seed)
    random = torch.Generator().manual_seed(seed)
    weights = torch.rand(batch.mask_BT.shape, dtype=torch.float64, generator=random)
    ones = torch.ones_like(weights)
    want, sums = policy_by_hand(unmasked(batch, weights if weighted else ones), low, high, dual)
    batch = with_junk(batch, seed)
    loss, diagnostics = policy_loss(
        batch.a_BT, batch.b_BT, batch.c_BT, batch.mask_BT,
        clip_low=low, clip_high=high, dual_clip=dual, weights_BT=weights if weighted else None,
    )  # fmt: skip
    assert float(loss) == pytest.approx(want, abs=1e-12)
    got = {key: float(value) for key, value in diagnostics.items()}
    assert got == pytest.approx(sums, abs=1e-12)


def test_policy_loss_by_hand():
    """Ratios .5, 1, 2 under A = 1 and −1: objectives .5, 1, 1.2 and −.8, −1, −2."""
    logprobs = torch.tensor([[0.5, 1.0, 2.0]]).log().repeat(2, 1).requires_grad_()
    advantages = torch.tensor([[1.0] * 3, [-1.0] * 3])
    mask = torch.ones(2, 3, dtype=torch.bool)
    loss, diagnostics = policy_loss(logprobs, torch.zeros(2, 3), advantages, mask)
    assert loss.item() == pytest.approx(-(0.5 + 1 + 1.2 - 0.8 - 1 - 2) / 6)
    loss.backward()
    want = torch.tensor([[-0.5, -1.0, 0.0], [0.0, 1.0, 2.0]]) / 6
    torch.testing.assert_close(logprobs.grad, want)
    assert float(diagnostics["clipped"]) == 2
    dual, counts = policy_loss(
        logprobs.detach(), torch.zeros(2, 3), advantages, mask, dual_clip=1.5
    )
    assert float(dual) == pytest.approx(-(0.5 + 1 + 1.2 - 0.8 - 1 - 1.5) / 6)
    assert float(counts["dual_clipped"]) == 1


def test_everything_open_is_the_plain_actor_critic():
    """clip = ∞, no weights: loss = −Σ A·p_new/p_old / tokens."""
    batch = random_batch(8, rows=3, length=5)
    loss, diagnostics = policy_loss(
        batch.a_BT, batch.b_BT, batch.c_BT, batch.mask_BT, clip_low=INF, clip_high=INF
    )
    plain = (batch.c_BT * (batch.a_BT - batch.b_BT).exp())[batch.mask_BT].mean()
    assert float(loss) == pytest.approx(-float(plain))
    assert float(diagnostics["clipped"]) == 0


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_first_ratio_is_one_and_its_gradient_is_whole(dtype, tolerance):
    batch = random_batch(9, rows=4, length=6).cast(dtype)
    logprobs = batch.a_BT.clone().requires_grad_()
    loss, diagnostics = policy_loss(logprobs, batch.a_BT, batch.c_BT, batch.mask_BT)
    assert float(diagnostics["ratio"] / diagnostics["tokens"]) == pytest.approx(1, abs=tolerance)
    assert float(diagnostics["ratio_max"]) == pytest.approx(1, abs=tolerance)
    assert float(diagnostics["k1"]) == float(diagnostics["k3"]) == 0
    loss.backward()
    want = torch.where(batch.mask_BT, -batch.c_BT.float() / int(batch.mask_BT.sum()), 0)
    torch.testing.assert_close(logprobs.grad.float(), want, rtol=tolerance, atol=1e-6)


def test_an_overflowing_ratio_spoils_no_gradient_where_it_is_clipped():
    logprobs = torch.tensor([[200.0, 200.0, 200.0, -1.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 0.0, 1.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    loss, _ = policy_loss(
        logprobs, torch.tensor([[0.0, 0.0, 0.0, -1.0]]), advantages, mask, dual_clip=3.0
    )
    assert loss.item() == pytest.approx((-1.2 + 3.0 - 0.0 - 1.0) / 4)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, 0.0, 0.0, -0.25]]))


@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize("clip", [0.2, INF])
@pytest.mark.parametrize(
    ("advantage", "weight"), [(0.0, None), (0.0, INF), (-1.0, 0.0), (1.0, 0.0), (0.0, 0.0)]
)
def test_a_token_without_advantage_or_weight_adds_0_however_large_its_ratio(
    advantage, weight, clip, dual
):
    logprobs = torch.tensor([[200.0, -1.0]], requires_grad=True)
    weights = None if weight is None else torch.tensor([[weight, 1.0]])
    loss, diagnostics = policy_loss(
        logprobs, torch.tensor([[0.0, -1.0]]), torch.tensor([[advantage, 1.0]]),
        torch.ones(1, 2, dtype=torch.bool),
        clip_low=clip, clip_high=clip, dual_clip=dual, weights_BT=weights,
    )  # fmt: skip
    loss.backward()
    assert loss.item() == -0.5
    assert logprobs.grad.tolist() == [[0.0, -0.5]]
    assert float(diagnostics["tokens"]) == 2


def test_gradients_by_finite_differences():
    batch = random_batch(10, rows=3, length=4)
    a_BT = batch.a_BT.requires_grad_()
    rest = (batch.b_BT, batch.c_BT, batch.mask_BT)
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, *rest, dual_clip=1.3)[0], a_BT)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, *rest)[0], a_BT)
    assert torch.autograd.gradcheck(lambda x: kl_loss(x, batch.b_BT, batch.mask_BT)[0], a_BT)


def test_only_the_new_outputs_are_trained():
    batch = random_batch(11).tracked()
    weights = torch.ones_like(batch.a_BT, requires_grad=True)
    for loss, _ in (
        policy_loss(batch.a_BT, batch.b_BT, batch.c_BT, batch.mask_BT, weights_BT=weights),
        value_loss(batch.a_BT, batch.b_BT, batch.c_BT, batch.mask_BT),
        kl_loss(batch.a_BT, batch.b_BT, batch.mask_BT),
    ):
        loss.backward()
    assert batch.a_BT.grad is not None
    assert batch.b_BT.grad is None and batch.c_BT.grad is None and weights.grad is None


@few
@given(seed=seeds, clip=st.sampled_from([0.0, 0.2, 0.5, INF]))
def test_value_loss_against_plain_python(seed, clip):
    batch = random_batch(seed)
    total, clipped, tokens = 0.0, 0, unmasked(batch)
    for value, old, target in tokens:
        bound = old + min(max(value - old, -clip), clip)
        total += max((value - target) ** 2, (bound - target) ** 2) / 2
        clipped += (bound - target) ** 2 > (value - target) ** 2 and abs(value - old) > clip
    spoilt = with_junk(batch, seed)
    loss, diagnostics = value_loss(spoilt.a_BT, spoilt.b_BT, spoilt.c_BT, spoilt.mask_BT, clip=clip)
    assert float(loss) == pytest.approx(total / len(tokens), abs=1e-12)
    assert float(diagnostics["clipped"]) == clipped
    assert float(diagnostics["tokens"]) == len(tokens)


def test_explained_variance_from_sums_over_splits():
    batch = random_batch(12, rows=6, length=8)
    parts = [
        value_loss(b.a_BT, b.b_BT, b.c_BT, b.mask_BT)[1]
        for b in (batch.rows(slice(0, 2)), batch.rows(slice(2, 6)))
    ]
    values, targets = batch.a_BT[batch.mask_BT], batch.c_BT[batch.mask_BT]
    want = 1 - (targets - values).var(correction=0) / targets.var(correction=0)
    got = explained_variance(combine_diagnostics(parts))
    assert float(got) == pytest.approx(float(want))
    constant = value_loss(
        torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)
    )[1]
    assert math.isnan(float(explained_variance(constant)))
    with pytest.raises(KeyError, match="returns"):
        explained_variance(policy_loss(batch.a_BT, batch.b_BT, batch.c_BT, batch.mask_BT)[1])


def test_kl_loss_is_the_mean_of_k3_and_k1_is_refused():
    batch = random_batch(13)
    tokens = [new - ref for new, ref, _ in unmasked(batch)]
    loss, diagnostics = kl_loss(batch.a_BT, batch.b_BT, batch.mask_BT)
    k3 = sum(math.exp(-lr) - 1 + lr for lr in tokens)
    assert float(loss) == pytest.approx(k3 / len(tokens))
    assert float(diagnostics["ref_k3"]) == pytest.approx(k3)
    assert float(diagnostics["ref_k1"]) == pytest.approx(sum(tokens))
    squares, _ = kl_loss(batch.a_BT, batch.b_BT, batch.mask_BT, kind="k2")
    assert float(squares) == pytest.approx(sum(lr * lr / 2 for lr in tokens) / len(tokens))
    with pytest.raises(ValueError, match="put k1 in the reward"):
        kl_loss(batch.a_BT, batch.b_BT, batch.mask_BT, kind="k1")


def test_importance_weights_by_hand():
    old = torch.tensor([[0.5, 1.9, 3.0, 500.0]]).log().requires_grad_()
    behaviour = torch.zeros(1, 4)
    mask = torch.tensor([[True, True, True, False]])
    weights = truncated_importance_weights(old, behaviour, mask)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 1.9, 2.0, 0.0]]))
    assert not weights.requires_grad
    torch.testing.assert_close(
        truncated_importance_weights(old, behaviour, mask, cap=1.0),
        torch.tensor([[0.5, 1.0, 1.0, 0.0]]),
    )
    with pytest.raises(ValueError, match="cap is 0"):
        truncated_importance_weights(old, behaviour, mask, cap=0.0)


LOSSES = {
    "policy": lambda b, n: policy_loss(
        b.a_BT, b.b_BT, b.c_BT, b.mask_BT, dual_clip=2.0, denominator=n
    ),
    "value": lambda b, n: value_loss(b.a_BT, b.b_BT, b.c_BT, b.mask_BT, denominator=n),
    "kl": lambda b, n: kl_loss(b.a_BT, b.b_BT, b.mask_BT, denominator=n),
}


@pytest.mark.parametrize("name", LOSSES)
@few
@given(seed=seeds, cuts=st.sets(st.integers(0, 6)))
def test_micro_batches_add_up_to_the_whole(name, seed, cuts):
    """Loss, gradient and diagnostics; empty micro-batches among them."""
    batch = random_batch(seed, rows=6).tracked()
    whole, diagnostics = LOSSES[name](batch, None)
    (want,) = torch.autograd.grad(whole, batch.a_BT)
    edges = [0, *sorted(cuts), 6]
    tokens = int(batch.mask_BT.sum())
    parts = [
        LOSSES[name](batch.rows(slice(lo, hi)), tokens) for lo, hi in itertools.pairwise(edges)
    ]
    total = sum(loss for loss, _ in parts)
    (got,) = torch.autograd.grad(total, batch.a_BT)
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    combined = combine_diagnostics([d for _, d in parts])
    assert combined.keys() == diagnostics.keys()
    for key, value in diagnostics.items():
        torch.testing.assert_close(combined[key], value, rtol=1e-12, atol=1e-12)


def one_step(batch, inputs_BTD, micro_batches):
    """One Adam step of a small float32 actor-critic with the batch split into micro-batches."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    tokens = batch.mask_BT.sum()
    for rows in torch.arange(len(inputs_BTD)).chunk(micro_batches):
        part = batch.rows(rows)
        logprobs_BT, values_BT = model(inputs_BTD[rows]).unbind(-1)
        policy, _ = policy_loss(logprobs_BT, part.a_BT, part.b_BT, part.mask_BT, denominator=tokens)
        value, _ = value_loss(values_BT, part.b_BT, part.c_BT, part.mask_BT, denominator=tokens)
        (policy + 0.5 * value).backward()
    optimizer.step()
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    return before, after


def test_one_step_gives_the_same_parameters_for_every_split():
    batch = random_batch(14, rows=32, length=12).cast(torch.float32)
    inputs_BTD = torch.randn(32, 12, 8, generator=torch.Generator().manual_seed(1))
    before, whole = one_step(batch, inputs_BTD, 1)
    assert (whole - before).abs().min() > 5e-4
    for micro_batches in (4, 8, 32):
        _, split = one_step(batch, inputs_BTD, micro_batches)
        assert (split - whole).abs().max() < 5e-6


def test_nonsense_raises():
    x, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"clip_low is -0\.2; it must be at least 0"):
        policy_loss(x, x, x, mask, clip_low=-0.2)
    with pytest.raises(ValueError, match=r"dual_clip is 1\.0; it must be above 1"):
        policy_loss(x, x, x, mask, dual_clip=1.0)
    with pytest.raises(ValueError, match="clip is -1"):
        value_loss(x, x, x, mask, clip=-1.0)
    with pytest.raises(ValueError, match="clip is None; it must be at least 0"):
        value_loss(x, x, x, mask, clip=None)  # type: ignore[arg-type]
    for bad in (0, -1.0, math.nan, math.inf, torch.ones(2)):
        with pytest.raises(ValueError, match=r"denominator is .*; it must be one positive number"):
            policy_loss(x, x, x, mask, denominator=bad)
    with pytest.raises(ValueError, match=r"advantages_BT has shape \(1, 3\)"):
        policy_loss(x, x, torch.zeros(1, 3), mask)
    with pytest.raises(ValueError, match="cannot be combined"):
        combine_diagnostics([])
    with pytest.raises(ValueError, match="cannot be combined"):
        combine_diagnostics([policy_loss(x, x, x, mask)[1], value_loss(x, x, x, mask)[1]])
