"""Advantage estimators against recursions in plain Python."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algos.advantages import ESTIMATORS, gae, grpo, per_token, reinforce_pp, rloo
from rlhf_ray.algos.rewards import shaped_rewards
from tests.algos.batches import random_batch, with_junk

seeds = st.integers(0, 2**32 - 1)
unit = st.floats(0, 1)
few = settings(max_examples=40, deadline=None)


def gae_by_hand(rewards, values, mask, gamma, lam):
    """Backwards over the unmasked positions of each row."""
    advantages = [[0.0] * len(row) for row in mask]
    returns = [[0.0] * len(row) for row in mask]
    for i, row in enumerate(mask):
        next_value = next_advantage = 0.0
        for t in reversed([t for t, on in enumerate(row) if on]):
            delta = rewards[i][t] + gamma * next_value - values[i][t]
            next_advantage = delta + gamma * lam * next_advantage
            next_value = values[i][t]
            advantages[i][t] = next_advantage
            returns[i][t] = next_advantage + next_value
    return advantages, returns


@few
@given(seed=seeds, gamma=unit, lam=unit)
def test_gae_against_plain_python(seed, gamma, lam):
    batch = with_junk(random_batch(seed), seed)
    got = gae(batch.a_BT, batch.b_BT, batch.mask_BT, gamma=gamma, lam=lam)
    want = gae_by_hand(batch.a_BT.tolist(), batch.b_BT.tolist(), batch.mask_BT.tolist(), gamma, lam)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, torch.tensor(w, dtype=torch.float64))


def test_gae_golden():
    rewards, values = torch.tensor([[-0.1, 0.2, 1.0]]), torch.tensor([[0.5, 0.4, 0.3]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    torch.testing.assert_close(advantages, torch.tensor([[0.52675, 0.765, 0.7]]))
    torch.testing.assert_close(returns, torch.tensor([[1.02675, 1.165, 1.0]]))


def test_gae_golden_with_holes_and_padding():
    nan = float("nan")
    rewards = torch.tensor([[nan, -0.1, nan, 0.2, nan, nan, 1.0, nan]])
    values = torch.tensor([[nan, 0.5, nan, 0.4, nan, nan, 0.3, nan]])
    advantages, returns = gae(rewards, values, ~rewards.isnan(), gamma=1.0, lam=0.95)
    want = torch.tensor([[0, 0.52675, 0, 0.765, 0, 0, 0.7, 0]])
    torch.testing.assert_close(advantages, want)
    want = torch.tensor([[0, 1.02675, 0, 1.165, 0, 0, 1.0, 0]])
    torch.testing.assert_close(returns, want)


@few
@given(seed=seeds)
def test_without_discount_it_is_the_sum_of_rewards_minus_the_value(seed):
    """γ = λ = 1: A_t = Σ_{i≥t} r_i − V_t, the plain actor-critic form."""
    batch = random_batch(seed)
    rewards = shaped_rewards(batch.scores_B, batch.a_BT, batch.c_BT, batch.mask_BT, kl_coef=1.0)
    advantages, returns = gae(rewards, batch.b_BT, batch.mask_BT, gamma=1.0, lam=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    want = torch.where(batch.mask_BT, to_go - batch.b_BT, 0)
    torch.testing.assert_close(advantages, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(returns, torch.where(batch.mask_BT, to_go, 0), rtol=1e-9, atol=1e-12)


def test_gae_over_a_long_response_in_float32():
    batch = random_batch(5, rows=2, length=4000).cast(torch.float32)
    got = gae(batch.a_BT, batch.b_BT, batch.mask_BT, gamma=1.0, lam=0.95)
    want = gae_by_hand(batch.a_BT.tolist(), batch.b_BT.tolist(), batch.mask_BT.tolist(), 1.0, 0.95)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, torch.tensor(w), rtol=0, atol=1e-5)


def test_gradient_of_gae():
    batch = random_batch(6, rows=2, length=5)
    leaves = (batch.a_BT.requires_grad_(), batch.b_BT.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda r, v: gae(r, v, batch.mask_BT, gamma=0.9, lam=0.7), leaves
    )


@few
@given(seed=seeds, gamma=unit)
def test_reinforce_pp_against_plain_python(seed, gamma):
    batch = with_junk(random_batch(seed), seed)
    advantages, returns = reinforce_pp(batch.a_BT, batch.mask_BT, gamma=gamma)
    zeros = [[0.0] * len(row) for row in batch.mask_BT]
    want, _ = gae_by_hand(batch.a_BT.tolist(), zeros, batch.mask_BT.tolist(), gamma, 1.0)
    torch.testing.assert_close(returns, torch.tensor(want, dtype=torch.float64))
    assert torch.equal(advantages, returns)


def test_a_discount_outside_the_unit_interval_raises():
    x, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"gamma is 1\.1; it must lie in \[0, 1\]"):
        gae(x, x, mask, gamma=1.1, lam=0.9)
    with pytest.raises(ValueError, match="lam is nan"):
        gae(x, x, mask, gamma=1.0, lam=float("nan"))
    with pytest.raises(ValueError, match=r"gamma is -0\.1"):
        reinforce_pp(x, mask, gamma=-0.1)


@st.composite
def grouped_scores(draw):
    """(scores, ids): groups of two or more, with their members scattered and ids anything."""
    sizes = draw(st.lists(st.integers(2, 5), min_size=1, max_size=5))
    names = draw(
        st.lists(
            st.integers(-(2**40), 2**40), min_size=len(sizes), max_size=len(sizes), unique=True
        )
    )
    ids = draw(st.permutations([n for n, k in zip(names, sizes, strict=True) for _ in range(k)]))
    scores = draw(st.lists(st.floats(-50, 50), min_size=len(ids), max_size=len(ids)))
    return scores, ids


@few
@given(grouped=grouped_scores())
def test_rloo_and_grpo_against_plain_python(grouped):
    scores, ids = grouped
    scores_B, ids_B = torch.tensor(scores, dtype=torch.float64), torch.tensor(ids)
    leave_one_out, scaled, centred = [], [], []
    for i, score in enumerate(scores):
        group = [s for s, g in zip(scores, ids, strict=True) if g == ids[i]]
        others = [s for j, s in enumerate(scores) if ids[j] == ids[i] and j != i]
        leave_one_out.append(score - sum(others) / len(others))
        centred.append(score - statistics.fmean(group))
        scaled.append(centred[-1] / (statistics.stdev(group) + 1e-4))
    for got, want in (
        (rloo(scores_B, ids_B), leave_one_out),
        (grpo(scores_B, ids_B), scaled),
        (grpo(scores_B, ids_B, scale=False), centred),
    ):
        torch.testing.assert_close(
            got, torch.tensor(want, dtype=torch.float64), rtol=1e-7, atol=1e-8
        )


@pytest.mark.parametrize("score", [0.1, 1.3, -37.7, 1000.1, 1e20])
@pytest.mark.parametrize("size", [2, 3, 7, 11])
def test_equal_scores_have_no_advantage_and_a_finite_gradient(score, size):
    for estimator in (rloo, grpo):
        scores = torch.full((size,), score).requires_grad_()
        advantages = estimator(scores, torch.full((size,), 9))
        assert advantages.dtype == torch.float32 and not advantages.any()
        advantages[0].backward()
        assert scores.grad.isfinite().all()


def test_groups_of_huge_scores_have_the_advantages_of_small_ones():
    scores, ids = torch.tensor([1.0, 2.0, 4.0]), torch.zeros(3, dtype=torch.long)
    torch.testing.assert_close(grpo(scores * 1e20, ids), grpo(scores, ids), rtol=1e-3, atol=0)
    torch.testing.assert_close(rloo(scores * 8e37, ids), rloo(scores, ids) * 8e37)


@pytest.mark.parametrize("estimator", [rloo, grpo])
def test_groups_are_checked(estimator):
    with pytest.raises(ValueError, match=r"group\(s\) \[7\] hold one response only"):
        estimator(torch.zeros(3), torch.tensor([4, 7, 4]))
    with pytest.raises(ValueError, match="ids are integers"):
        estimator(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="one id is needed for each"):
        estimator(torch.zeros(2), torch.tensor([1, 1, 1]))
    with pytest.raises(ValueError, match=r"scores_B has dtype torch\.bool"):
        estimator(torch.tensor([True, False]), torch.tensor([1, 1]))
    assert estimator(torch.zeros(2, dtype=torch.bfloat16), torch.tensor([1, 1])).dtype == (
        torch.float32
    )


@pytest.mark.parametrize("estimator", [rloo, grpo])
def test_integer_scores_are_scores(estimator):
    ids = torch.tensor([1, 0, 1, 0])
    got = estimator(torch.tensor([3, 0, 5, 1]), ids)
    assert got.dtype == torch.float32
    assert torch.equal(got, estimator(torch.tensor([3.0, 0.0, 5.0, 1.0]), ids))


def test_one_advantage_a_response_is_given_to_each_of_its_tokens():
    mask = torch.tensor([[True, False, True], [False, True, False]])
    got = per_token(torch.tensor([2.0, -1.0]), mask)
    assert got.tolist() == [[2.0, 0.0, 2.0], [0.0, -1.0, 0.0]]


def test_the_table_says_what_each_estimator_needs():
    facts = {n: (e.needs_values, e.needs_group, e.kl_in) for n, e in ESTIMATORS.items()}
    assert facts == {
        "gae": (True, False, "reward"),
        "rloo": (False, True, "reward"),
        "grpo": (False, True, "loss"),
        "reinforce_pp": (False, False, "reward"),
    }
    assert [e.fn for e in ESTIMATORS.values()] == [gae, rloo, grpo, reinforce_pp]
    with pytest.raises(AttributeError):
        ESTIMATORS["gae"].kl_in = "loss"
