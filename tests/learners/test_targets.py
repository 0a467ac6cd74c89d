"""What the optimizer steps aim at, and the rollouts' statistics, against plain Python."""

from dataclasses import replace

import pytest
import torch

from rlhf_ray.config import PPO
from rlhf_ray.learners.rollouts import Rollouts
from rlhf_ray.learners.targets import OldPass, Targets, make_targets
from tests.learners import oracle

SETTINGS = PPO(
    prompts=3, samples=2, minibatches=1, gamma=0.9, lam=0.7, kl_coef=9.0, max_staleness=2,
    importance_cap=1.3,
)  # fmt: skip
KL_COEF = 0.3  # where β has come to since `kl_coef`
ROWS = oracle.responses()


def made(settings: PPO) -> tuple[Targets, dict[str, float]]:
    values = [row.values for row in ROWS] if settings.estimator == "gae" else None
    old = OldPass(
        torch.tensor(oracle.flat(row.old for row in ROWS)),
        torch.tensor(oracle.flat(row.entropies for row in ROWS)),
        None if values is None else torch.tensor(oracle.flat(values)),
    )
    rollouts = Rollouts.from_table(oracle.table_of(ROWS))
    return make_targets(rollouts, old, settings, kl_coef=KL_COEF, step=oracle.STEP)


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("estimator", oracle.ESTIMATORS)
def test_advantages_of_each_estimator(estimator: str, whiten: bool) -> None:
    settings = replace(SETTINGS, estimator=estimator, whiten_advantages=whiten)
    targets, _ = made(settings)
    want = oracle.learned_advantages(ROWS, settings, kl_coef=KL_COEF)
    assert targets.advantages_N.tolist() == pytest.approx(want, abs=1e-5)


def test_a_critic_aims_at_advantage_plus_value_before_whitening() -> None:
    targets, _ = made(SETTINGS)
    want = oracle.flat(oracle.returns(ROWS, SETTINGS, kl_coef=KL_COEF))
    assert targets.returns_N.tolist() == pytest.approx(want, abs=1e-5)
    assert targets.old_values_N.tolist() == pytest.approx(oracle.flat(r.values for r in ROWS))


@pytest.mark.parametrize("estimator", oracle.ESTIMATORS)
def test_what_else_the_losses_get(estimator: str) -> None:
    targets, _ = made(replace(SETTINGS, estimator=estimator))
    assert targets.old_logprobs_N.tolist() == pytest.approx(oracle.flat(r.old for r in ROWS))
    assert (targets.returns_N is None) == (targets.old_values_N is None) == (estimator != "gae")
    if estimator == "grpo":
        assert targets.ref_logprobs_N.tolist() == pytest.approx(oracle.flat(r.ref for r in ROWS))
    else:
        assert targets.ref_logprobs_N is None, "the KL is in the reward"


@pytest.mark.parametrize("cap", [1.3, 5.0])
def test_importance_weights_whatever_a_token_s_age(cap: float) -> None:
    targets, _ = made(replace(SETTINGS, importance_cap=cap))
    want = oracle.weights(ROWS, cap=cap)
    assert min(want) < 1 < max(want)
    assert targets.weights_N.tolist() == pytest.approx(want)


@pytest.mark.parametrize("estimator", oracle.ESTIMATORS)
def test_statistics_are_as_docs_metrics_defines_them(estimator: str) -> None:
    settings = replace(SETTINGS, estimator=estimator)
    _, stats = made(settings)
    assert stats == pytest.approx(oracle.stats(ROWS, settings, kl_coef=KL_COEF), abs=1e-5)
