"""What one iteration's optimizer steps aim at: advantages, returns, importance weights.

Everything here sees the whole batch, and gives every rank the same numbers.
Shapes: B rollouts, T response positions (padded), N response tokens end to end.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from rlhf_ray.algos.advantages import ESTIMATORS, per_token
from rlhf_ray.algos.kl import response_kl
from rlhf_ray.algos.losses import truncated_importance_weights
from rlhf_ray.algos.masked import masked_moments, masked_whiten
from rlhf_ray.algos.rewards import shaped_rewards
from rlhf_ray.config import PPO
from rlhf_ray.learners.rollouts import Rollouts


@dataclass(frozen=True)
class OldPass:
    """Of the policy and critic before the update, float32 [N]; values where there is a critic."""

    logprobs_N: Tensor
    entropies_N: Tensor
    values_N: Tensor | None


@dataclass(frozen=True)
class Targets:
    """What the losses take, float32 [N] each.

    Attributes:
        returns_N, old_values_N: where there is a critic.
        ref_logprobs_N: where the loss holds the KL.
        weights_N: truncated importance weights, where a run may be stale (`max_staleness` > 0).
    """

    old_logprobs_N: Tensor
    advantages_N: Tensor
    returns_N: Tensor | None = None
    old_values_N: Tensor | None = None
    ref_logprobs_N: Tensor | None = None
    weights_N: Tensor | None = None


def make_targets(
    rollouts: Rollouts, old: OldPass, settings: PPO, *, kl_coef: float, step: int
) -> tuple[Targets, dict[str, float]]:
    """Targets of the update at `step`, and the statistics of the rollouts it learns from."""
    estimator = ESTIMATORS[settings.estimator]
    mask_BT = rollouts.response_mask_BT
    advantages_BT, returns_BT = _advantages(rollouts, old, settings, kl_coef=kl_coef)
    stats = _stats(rollouts, old, advantages_BT, step=step)
    if old.values_N is not None:
        returns_N = rollouts.flat(returns_BT).double()
        variance = returns_N.var(correction=0)
        if variance > 0:  # else there is nothing to explain
            unexplained = (returns_N - old.values_N).var(correction=0) / variance
            stats["value/explained_variance"] = float(1 - unexplained)
    if settings.whiten_advantages and not estimator.needs_group:
        advantages_BT = masked_whiten(advantages_BT, mask_BT)
    weights_N = None
    if settings.max_staleness > 0:
        weights_N = _weights(rollouts, old, cap=settings.importance_cap)
    values_N = old.values_N
    return Targets(
        old_logprobs_N=old.logprobs_N,
        advantages_N=rollouts.flat(advantages_BT),
        returns_N=None if values_N is None else rollouts.flat(returns_BT),
        old_values_N=values_N,
        ref_logprobs_N=rollouts.ref_logprobs_N if estimator.kl_in == "loss" else None,
        weights_N=weights_N,
    ), stats


def _response_kl(rollouts: Rollouts, logprobs_N: Tensor) -> Tensor:
    """Σ_t k1 to the reference, [B]."""
    logprobs_BT, ref_BT = rollouts.pad(logprobs_N), rollouts.pad(rollouts.ref_logprobs_N)
    return response_kl(logprobs_BT, ref_BT, rollouts.response_mask_BT)


def _advantages(
    rollouts: Rollouts, old: OldPass, settings: PPO, *, kl_coef: float
) -> tuple[Tensor, Tensor]:
    """(advantages_BT, returns_BT) of the configured estimator, before whitening."""
    estimator = ESTIMATORS[settings.estimator]
    mask_BT = rollouts.response_mask_BT
    if estimator.needs_group:
        scores_B = rollouts.scores_B
        if estimator.kl_in == "reward":
            scores_B = scores_B - kl_coef * _response_kl(rollouts, old.logprobs_N)
        advantages_BT = per_token(estimator.fn(scores_B, rollouts.prompt_ids_B), mask_BT)
        return advantages_BT, advantages_BT
    rewards_BT = shaped_rewards(
        rollouts.scores_B,
        rollouts.pad(old.logprobs_N),
        rollouts.pad(rollouts.ref_logprobs_N),
        mask_BT,
        kl_coef=kl_coef if estimator.kl_in == "reward" else 0.0,
    )
    if not estimator.needs_values:
        return estimator.fn(rewards_BT, mask_BT, gamma=settings.gamma)
    assert old.values_N is not None
    values_BT = rollouts.pad(old.values_N)
    return estimator.fn(rewards_BT, values_BT, mask_BT, gamma=settings.gamma, lam=settings.lam)


def _weights(rollouts: Rollouts, old: OldPass, *, cap: float) -> Tensor:
    """min(exp(old − behaviour), cap)."""
    weights_BT = truncated_importance_weights(
        rollouts.pad(old.logprobs_N),
        rollouts.pad(rollouts.behaviour_logprobs_N),
        rollouts.response_mask_BT,
        cap=cap,
    )
    return rollouts.flat(weights_BT)


def kl_of_samples(stats: Mapping[str, float]) -> tuple[float, float]:
    """(mean, std) over an iteration's responses of Σ k1, by the policy that sampled them.

    Where tokens are stale the generators' own log-probs say so: the sum of the newest policy's over
    samples of older ones is no estimate of a KL, and may be negative.
    """
    of = "kl/sampled_" if stats["staleness/max"] > 0 else "kl/"
    return stats[f"{of}mean_k1"], stats[f"{of}std_k1"]


def _stats(
    rollouts: Rollouts, old: OldPass, advantages_BT: Tensor, *, step: int
) -> dict[str, float]:
    _, mean, variance = masked_moments(advantages_BT, rollouts.response_mask_BT)
    scores_B, kl_B = rollouts.scores_B.double(), _response_kl(rollouts, old.logprobs_N).double()
    sampled_kl_B = _response_kl(rollouts, rollouts.behaviour_logprobs_N).double()
    staleness_N = (step - rollouts.token_steps_N).clamp(min=0).double()
    return {
        "kl/mean_k1": float(kl_B.mean()),
        "kl/std_k1": float(kl_B.std(correction=0)),
        "kl/sampled_mean_k1": float(sampled_kl_B.mean()),
        "kl/sampled_std_k1": float(sampled_kl_B.std(correction=0)),
        "entropy/mean": float(old.entropies_N.double().mean()),
        "advantage/mean": float(mean),
        "advantage/std": float(variance.sqrt()),
        "score/mean": float(scores_B.mean()),
        "score/std": float(scores_B.std(correction=0)),
        "response/length": float(rollouts.lengths_B.double().mean()),
        "response/eos_fraction": float(rollouts.has_eos_B.double().mean()),
        "staleness/mean": float(staleness_N.mean()),
        "staleness/max": float(staleness_N.max()),
    }
