"""The losses of a minibatch, and what an update says of them, against plain Python."""

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch

from rlhf_ray.config import PPO
from rlhf_ray.learners.group import Group
from rlhf_ray.learners.losses import Losses, Totals
from rlhf_ray.learners.microbatches import micro_batches
from rlhf_ray.learners.rollouts import Rollouts
from rlhf_ray.learners.targets import Targets
from tests.learners import oracle
from tests.learners.ranks import CPU

SETTINGS = PPO(clip_low=0.1, clip_high=0.3, value_clip=0.15, kl_coef=9.0)
KL_COEF = 0.3  # where β has come to since `kl_coef`
ROWS = oracle.responses()
TOKENS = sum(oracle.LENGTHS)
DENOMINATOR = 37.0  # of a minibatch whose other tokens are another rank's

rng = np.random.default_rng(2)
OLD, REF = rng.normal(-3, 0.1, (2, TOKENS))
OLD_VALUES, AIMS = rng.normal(size=(2, TOKENS))
NEW = OLD + rng.normal(0, 0.5, TOKENS)
VALUES = OLD_VALUES + rng.normal(0, 0.3, TOKENS)
ADVANTAGES = rng.normal(size=TOKENS)
WEIGHTS = rng.uniform(0.5, 1.5, TOKENS)
TARGETS = Targets(
    old_logprobs_N=torch.tensor(OLD),
    advantages_N=torch.tensor(ADVANTAGES),
    returns_N=torch.tensor(AIMS),
    old_values_N=torch.tensor(OLD_VALUES),
)


def minibatch(targets: Targets, settings: PPO = SETTINGS) -> Losses:
    """Of all tokens, in several micro-batches."""
    losses = Losses(targets, settings, CPU, kl_coef=KL_COEF)
    losses.begin(DENOMINATOR)
    rollouts = Rollouts.from_table(oracle.table_of(ROWS))
    whole = {"rank": 0, "ranks": 1, "packed": True, "device": CPU}
    for micro in micro_batches(rollouts, range(len(ROWS)), budget=12, **whole):
        losses.policy(micro, torch.tensor(NEW)[micro.token_index_N])
        losses.value(micro, torch.tensor(VALUES)[micro.token_index_N])
    return losses


def policy_sum(settings: PPO, weights: np.ndarray) -> float:
    tokens = zip(NEW, OLD, ADVANTAGES, weights, strict=True)
    return sum(oracle.policy_loss(*token, settings) for token in tokens)


@pytest.mark.parametrize("dual_clip", [None, 1.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_policys_loss(dual_clip: float | None, weights: np.ndarray | None) -> None:
    settings = replace(SETTINGS, dual_clip=dual_clip)
    weights_N = None if weights is None else torch.tensor(weights)
    found = minibatch(replace(TARGETS, weights_N=weights_N), settings).sums(Group())
    want = policy_sum(settings, np.ones(TOKENS) if weights is None else weights) / DENOMINATOR
    assert found["loss/policy"] == pytest.approx(want)


def test_the_kl_in_the_loss_is_k3_times_beta() -> None:
    found = minibatch(replace(TARGETS, ref_logprobs_N=torch.tensor(REF))).sums(Group())
    kl = sum(oracle.k3(new, ref) for new, ref in zip(NEW, REF, strict=True))
    want = (policy_sum(SETTINGS, np.ones(TOKENS)) + KL_COEF * kl) / DENOMINATOR
    assert found["loss/policy"] == pytest.approx(want)


def test_the_values_loss() -> None:
    tokens = zip(VALUES, OLD_VALUES, AIMS, strict=True)
    want = sum(oracle.value_loss(*token, SETTINGS.value_clip) for token in tokens) / DENOMINATOR
    assert minibatch(TARGETS).sums(Group())["loss/value"] == pytest.approx(want)


def test_an_updates_metrics_are_of_tokens_or_of_steps() -> None:
    totals = Totals()
    first = minibatch(TARGETS)
    second = minibatch(replace(TARGETS, advantages_N=torch.full((TOKENS,), 2.0)))
    for losses, norm in ((first, 1.0), (second, 4.0)):
        totals.add(losses)
        totals.gradient("grad/norm", norm)
    ratios = np.exp(NEW - OLD)
    clipped = np.where(ADVANTAGES > 0, ratios > 1.3, ratios < 0.9).sum() + (ratios > 1.3).sum()
    assert totals.metrics(Group()) == pytest.approx(
        {
            "grad/norm": 2.5,
            "loss/policy": fmean(x.sums(Group())["loss/policy"] for x in (first, second)),
            "loss/value": first.sums(Group())["loss/value"],
            "policy/clip_fraction": clipped / (2 * TOKENS),
            "policy/ratio_max": ratios.max(),
            "policy/approx_kl": fmean(
                oracle.k3(old, new) for old, new in zip(OLD, NEW, strict=True)
            ),
        }
    )
