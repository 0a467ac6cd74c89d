"""Losses of PPO: policy, value, KL to the reference; importance weights for stale rollouts.

Each loss is a sum over a `denominator` that the caller gives, so that micro-batches, ranks and
packs add up to one loss; by default it is the number of unmasked tokens. Each returns
(loss, diagnostics). Diagnostics are detached float64 scalars that add up over splits, except that
those named `*_max` combine by their maximum: see `combine_diagnostics`.
Shapes: B responses, T response positions (padded). B may be 0: the loss is then 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_ray.algos.checks import Denominator, divide, select_tokens, zero_outside
from rlhf_ray.algos.kl import kl_estimate

Diagnostics = dict[str, Tensor]


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    weights_BT: Tensor | None = None,
    denominator: Denominator = None,
) -> tuple[Tensor, Diagnostics]:
    """Clipped surrogate (Schulman et al. 2017, eq. 7), optionally with dual clip (Ye et al. 2020).

    ratio = exp(logprob − old);  objective = min(ratio·A, clip(ratio, 1 − low, 1 + high)·A);
    with dual clip c, where A < 0: objective = max(objective, c·A);
    loss = −Σ w·objective / denominator.
    Where A or w is 0 a token adds exactly 0 to loss and gradient, even when its ratio overflows.

    Args:
        logprobs_BT: floating point [B, T]; the only input that a gradient reaches.
        old_logprobs_BT, advantages_BT: floating point [B, T].
        response_mask_BT: bool or 0/1 [B, T].
        clip_low, clip_high: at least 0; inf for no clipping.
        dual_clip: c > 1, or None.
        weights_BT: floating point [B, T] (`truncated_importance_weights`), or None for 1.
        denominator: of the sum over tokens; by default the number of unmasked ones here.

    Returns: (loss, diagnostics): `clipped` (tokens where the clipped branch is the smaller),
        `dual_clipped`, `k1` and `k3` (Σ of KL(old ‖ new), tokens being from old), `ratio`,
        `ratio_max`, `tokens`.
    Raises: ValueError for a row without an unmasked position, a clip out of range, another shape or
        dtype.
    """
    _check_clips(clip_low=clip_low, clip_high=clip_high)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}; it must be above 1, or None to leave it out")
    mask_BT, (logprobs_BT, old_BT, advantages_BT, weights_BT) = select_tokens(
        response_mask_BT,
        logprobs_BT=logprobs_BT,
        old_logprobs_BT=old_logprobs_BT.detach(),
        advantages_BT=advantages_BT.detach(),
        weights_BT=torch.ones_like(old_logprobs_BT) if weights_BT is None else weights_BT.detach(),
    )
    log_ratio_BT = logprobs_BT - old_BT
    objective_BT, clipped_BT, dual_clipped_BT = _clipped_objective(
        log_ratio_BT, advantages_BT, weights_BT, clip_low, clip_high, dual_clip
    )
    ratio_BT = zero_outside(mask_BT, log_ratio_BT.detach().exp())
    loss = divide(-objective_BT.sum(), denominator, mask_BT.sum())
    return loss, _sums(
        clipped=clipped_BT,
        dual_clipped=dual_clipped_BT,
        k1=kl_estimate(old_BT, logprobs_BT.detach(), "k1"),
        k3=kl_estimate(old_BT, logprobs_BT.detach(), "k3"),
        ratio=ratio_BT,
        tokens=mask_BT,
    ) | {"ratio_max": _max(ratio_BT)}


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    clip: float = 0.2,
    denominator: Denominator = None,
) -> tuple[Tensor, Diagnostics]:
    """Clipped value loss: Σ ½·max((V − R)², (V_clip − R)²) / denominator.

    V_clip = old + clip(V − old, −c, c). (OpenAI baselines' PPO2, not in Schulman et al. 2017; Huang
    et al. 2022, "The 37 implementation details of PPO", detail 9.)

    Args:
        values_BT: floating point [B, T]; the only input that a gradient reaches.
        old_values_BT, returns_BT: floating point [B, T].
        response_mask_BT: bool or 0/1 [B, T].
        clip: c, at least 0; inf for no clipping.
        denominator: of the sum over tokens; by default the number of unmasked ones here.

    Returns: (loss, diagnostics): `clipped` (tokens where the clipped branch is the larger),
        `returns`, `returns_squared`, `errors`, `errors_squared` (Σ of R and of R − V, for
        `explained_variance`), `tokens`.
    Raises: ValueError for a row without an unmasked position, a clip out of range, another shape or
        dtype.
    """
    _check_clips(clip=clip)
    mask_BT, (values_BT, old_BT, returns_BT) = select_tokens(
        response_mask_BT,
        values_BT=values_BT,
        old_values_BT=old_values_BT.detach(),
        returns_BT=returns_BT.detach(),
    )
    moved_BT = values_BT - old_BT
    free_BT = (values_BT - returns_BT).square()
    bound_BT = (old_BT + moved_BT.clamp(-clip, clip) - returns_BT).square()
    loss = divide(torch.maximum(free_BT, bound_BT).sum() / 2, denominator, mask_BT.sum())
    errors_BT = (returns_BT - values_BT.detach()).double()
    return loss, _sums(
        clipped=(bound_BT > free_BT) & (moved_BT.abs() > clip),
        returns=returns_BT,
        returns_squared=returns_BT.double().square(),
        errors=errors_BT,
        errors_squared=errors_BT.square(),
        tokens=mask_BT,
    )


def kl_loss(
    logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    kind: str = "k3",
    denominator: Denominator = None,
) -> tuple[Tensor, Diagnostics]:
    """Σ kl_t / denominator, for estimators whose KL is in the loss (Shao et al. 2024, eq. 4).

    Args:
        logprobs_BT: floating point [B, T]; the only input that a gradient reaches.
        ref_logprobs_BT: floating point [B, T].
        response_mask_BT: bool or 0/1 [B, T].
        kind: "k2" or "k3"; k1 has no gradient in expectation, so it raises.
        denominator: of the sum over tokens; by default the number of unmasked ones here.

    Returns: (loss, diagnostics): `ref_k1`, `ref_k3` (Σ) and `tokens`.
    Raises: ValueError for another kind, a row without an unmasked position, another shape or dtype.
    """
    if kind == "k1":
        raise ValueError(
            "kind is 'k1', whose gradient is 0 on average; put k1 in the reward (`shaped_rewards`) "
            "and use 'k3' in a loss"
        )
    mask_BT, (logprobs_BT, ref_BT) = select_tokens(
        response_mask_BT, logprobs_BT=logprobs_BT, ref_logprobs_BT=ref_logprobs_BT.detach()
    )
    loss = divide(kl_estimate(logprobs_BT, ref_BT, kind).sum(), denominator, mask_BT.sum())
    return loss, _sums(
        ref_k1=kl_estimate(logprobs_BT.detach(), ref_BT, "k1"),
        ref_k3=kl_estimate(logprobs_BT.detach(), ref_BT, "k3"),
        tokens=mask_BT,
    )


def truncated_importance_weights(
    old_logprobs_BT: Tensor,
    behaviour_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    cap: float = 2.0,
) -> Tensor:
    """min(exp(old − behaviour), cap), detached: corrects rollouts of an older policy.

    (Truncated importance sampling as in Espeholt et al. 2018, with the learner's log-probabilities
    before the update over those of the engine that sampled.)

    Args:
        old_logprobs_BT, behaviour_logprobs_BT: floating point [B, T].
        response_mask_BT: bool or 0/1 [B, T].
        cap: positive; inf for no truncation.

    Returns: weights_BT [B, T] in the compute dtype, 0 where masked, without gradient.
    Raises: ValueError unless cap is positive, for a row without an unmasked position, another shape
        or dtype.
    """
    if not cap > 0:
        raise ValueError(f"cap is {cap}; it must be positive")
    mask_BT, (old_BT, behaviour_BT) = select_tokens(
        response_mask_BT,
        old_logprobs_BT=old_logprobs_BT.detach(),
        behaviour_logprobs_BT=behaviour_logprobs_BT.detach(),
    )
    return zero_outside(mask_BT, (old_BT - behaviour_BT).exp().clamp(max=cap))


def combine_diagnostics(parts: Sequence[Diagnostics]) -> Diagnostics:
    """Diagnostics of the whole from those of its parts: sums, and maxima for keys `*_max`.

    Args:
        parts: what one loss returned for each of the splits, float64 scalars.

    Returns: float64 scalars under the same keys.
    Raises: ValueError when there are no parts, or their keys differ.
    """
    if not parts or any(part.keys() != parts[0].keys() for part in parts):
        raise ValueError(
            f"diagnostics with keys {[sorted(part) for part in parts]} cannot be combined; give "
            "one part at least, all from the same loss"
        )
    return {
        key: torch.stack([part[key] for part in parts]).amax(0)
        if key.endswith("_max")
        else torch.stack([part[key] for part in parts]).sum(0)
        for key in parts[0]
    }


def explained_variance(diagnostics: Diagnostics) -> Tensor:
    """1 − Var(R − V) / Var(R) from the (combined) diagnostics of `value_loss`.

    (`explained_variance` of OpenAI's baselines, from sums.)

    Args:
        diagnostics: float64 scalars.

    Returns: a float64 scalar, at most 1; NaN when the returns do not vary, or there are none.
    Raises: KeyError for diagnostics of another loss.
    """
    tokens = diagnostics["tokens"]

    def variance(name: str) -> Tensor:
        mean = diagnostics[name] / tokens
        return diagnostics[f"{name}_squared"] / tokens - mean.square()

    spread = variance("returns")
    return torch.where(spread > 0, 1 - variance("errors") / spread, torch.nan)


def _clipped_objective(
    log_ratio_BT: Tensor,
    advantages_BT: Tensor,
    weights_BT: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(w·objective, where the ratio's clip binds, where the dual clip binds).

    A ratio that overflows has a NaN gradient even where it is not selected (0·inf), so a constant
    takes its place before exp wherever the objective does not depend on it. Where A or w is 0 that
    constant is 0, and not their product with inf.
    """
    ratio_BT = log_ratio_BT.detach().exp()
    free_BT = ratio_BT * advantages_BT
    bound_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high) * advantages_BT
    clipped_BT = bound_BT < free_BT
    dual_clipped_BT = torch.zeros_like(clipped_BT)
    constant_BT = bound_BT
    if dual_clip is not None:
        floor_BT = dual_clip * advantages_BT
        dual_clipped_BT = (advantages_BT < 0) & (torch.minimum(free_BT, bound_BT) < floor_BT)
        constant_BT = torch.where(dual_clipped_BT, floor_BT, bound_BT)
    counts_BT = (advantages_BT != 0) & (weights_BT != 0)
    constant_BT, weights_BT = (zero_outside(counts_BT, x) for x in (constant_BT, weights_BT))
    is_live_BT = counts_BT & ~clipped_BT & ~dual_clipped_BT
    live_BT = zero_outside(is_live_BT, log_ratio_BT).exp() * advantages_BT
    objective_BT = weights_BT * torch.where(is_live_BT, live_BT, constant_BT)
    return objective_BT, clipped_BT, dual_clipped_BT


def _check_clips(**clips: float | None) -> None:
    for name, clip in clips.items():
        if clip is None or not clip >= 0:
            raise ValueError(f"{name} is {clip}; it must be at least 0 (inf for no clipping)")


def _sums(**tensors: Tensor) -> Diagnostics:
    return {name: tensor.detach().double().sum() for name, tensor in tensors.items()}


def _max(x: Tensor) -> Tensor:
    """Largest element of a tensor without negative ones, 0 when it is empty; float64."""
    return x.double().amax() if x.numel() else x.new_zeros((), dtype=torch.float64)
