"""Shaped rewards and the treatment of scores, against plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algos.rewards import (
    clip_scores,
    normalise_scores,
    penalise_missing_eos,
    shaped_rewards,
)
from tests.algos.batches import random_batch, with_junk

KINDS = {
    "k1": lambda lr: lr,
    "k2": lambda lr: lr * lr / 2,
    "k3": lambda lr: math.exp(-lr) - 1 + lr,
}


def shaped_by_hand(scores, logprobs, ref, mask, beta, kind):
    rewards = [[0.0] * len(row) for row in mask]
    for i, row in enumerate(mask):
        kept = [t for t, on in enumerate(row) if on]
        for t in kept:
            rewards[i][t] = -beta * KINDS[kind](logprobs[i][t] - ref[i][t])
        rewards[i][kept[-1]] += scores[i]
    return rewards


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), beta=st.floats(0, 2))
def test_against_plain_python(kind, seed, beta):
    batch = with_junk(random_batch(seed), seed)
    got = shaped_rewards(
        batch.scores_B, batch.a_BT, batch.b_BT, batch.mask_BT, kl_coef=beta, kl_kind=kind
    )
    want = shaped_by_hand(
        *(x.tolist() for x in (batch.scores_B, batch.a_BT, batch.b_BT)),
        batch.mask_BT.tolist(),
        beta,
        kind,
    )
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


def test_rewards_sum_to_score_minus_kl():
    batch = random_batch(3, rows=4, length=7)
    got = shaped_rewards(batch.scores_B, batch.a_BT, batch.b_BT, batch.mask_BT, kl_coef=0.7)
    kl_B = torch.where(batch.mask_BT, batch.a_BT - batch.b_BT, 0).sum(1)
    torch.testing.assert_close(got.sum(1), batch.scores_B - 0.7 * kl_B)


def test_the_score_lies_on_the_eos_even_when_padding_is_eos_too():
    eos, tokens = 2, torch.tensor([[5, 6, 2, 2, 2], [2, 2, 5, 6, 2]])
    mask = torch.tensor([[True, True, True, False, False], [False, False, True, True, True]])
    zeros = torch.zeros(2, 5)
    got = shaped_rewards(torch.tensor([1.5, -2.0]), zeros, zeros, mask, kl_coef=0.1)
    assert got.nonzero().tolist() == [[0, 2], [1, 4]]
    assert got[0, 2] == 1.5 and got[1, 4] == -2.0
    assert (tokens[got != 0] == eos).all()


def test_scores_normalise_clip_and_pay_for_a_missing_eos():
    scores = torch.tensor([1.0, 3.0, 11.0])
    normal = normalise_scores(scores, mean=3.0, std=2.0)
    assert normal.tolist() == [-1.0, 0.0, 4.0]
    clipped = clip_scores(normal, limit=2.5)
    assert clipped.tolist() == [-1.0, 0.0, 2.5]
    has_eos = torch.tensor([True, False, True])
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float32):
        found = penalise_missing_eos(clipped, has_eos.to(dtype), penalty=1.0)
        assert found.tolist() == [-1.0, -1.0, 2.5]


def test_integer_scores_become_float32():
    scores = torch.tensor([1, 3, -11])
    for found, want in (
        (normalise_scores(scores, mean=3.0, std=2.0), [-1.0, 0.0, -7.0]),
        (clip_scores(scores, limit=2.5), [1.0, 2.5, -2.5]),
        (penalise_missing_eos(scores, torch.tensor([1, 1, 0]), penalty=0.5), [1.0, 3.0, -11.5]),
    ):
        assert found.dtype == torch.float32 and found.tolist() == want
    zeros, mask = torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.uint8)
    shaped = shaped_rewards(scores, zeros, zeros, mask, kl_coef=0.1)
    assert shaped.dtype == torch.float32 and shaped.sum(1).tolist() == [1.0, 3.0, -11.0]
    with pytest.raises(ValueError, match=r"scores_B has dtype torch\.bool"):
        clip_scores(scores > 0, limit=1.0)


def test_reference_samples_normalise_to_mean_0_and_deviation_1():
    scores = torch.randn(500, dtype=torch.float64) * 7 + 3
    normal = normalise_scores(scores, mean=float(scores.mean()), std=float(scores.std()))
    assert float(normal.mean()) == pytest.approx(0, abs=1e-12)
    assert float(normal.std()) == pytest.approx(1)


def test_low_precision_scores_widen():
    half = torch.ones(2, dtype=torch.bfloat16)
    assert normalise_scores(half, mean=0.0, std=3.0).dtype == torch.float32
    assert clip_scores(half, limit=1.0).dtype == torch.float32
    eos = torch.tensor([True, False])
    assert penalise_missing_eos(half, eos, penalty=0.5).dtype == torch.float32


def test_nonsense_raises():
    scores = torch.zeros(2)
    with pytest.raises(ValueError, match="std is 0"):
        normalise_scores(scores, mean=0.0, std=0.0)
    with pytest.raises(ValueError, match="limit is -1"):
        clip_scores(scores, limit=-1.0)
    with pytest.raises(ValueError, match="penalty is -1"):
        penalise_missing_eos(scores, torch.ones(2, dtype=torch.bool), penalty=-1.0)
    with pytest.raises(ValueError, match=r"pass has_eos_B\.bool"):
        penalise_missing_eos(scores, torch.tensor([7, 0]), penalty=1.0)
    mask = torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="2 scores, but the mask has 3 rows"):
        shaped_rewards(scores, torch.zeros(3, 2), torch.zeros(3, 2), mask, kl_coef=0.1)


def test_without_a_price_an_impossible_token_of_the_reference_costs_nothing():
    refs = torch.tensor([[-torch.inf, -1.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    found = shaped_rewards(torch.tensor([2.0]), torch.zeros(1, 2), refs, mask, kl_coef=0.0)
    assert found.tolist() == [[0.0, 2.0]]
