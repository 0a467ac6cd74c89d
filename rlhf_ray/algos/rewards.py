"""From one score a response to one reward a token.

Order of use: `normalise_scores`, `clip_scores`, `penalise_missing_eos`, then `shaped_rewards`.
Shapes: B responses, T response positions (padded).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algos.checks import (
    as_mask,
    check_rank,
    check_same_shape,
    select_tokens,
    widen_scores,
    zero_outside,
)
from rlhf_ray.algos.kl import kl_estimate
from rlhf_ray.algos.masked import last_unmasked


def shaped_rewards(
    scores_B: Tensor,
    logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    kl_coef: float,
    kl_kind: str = "k1",
) -> Tensor:
    """r_t = −β·kl_t, plus the score once, at the last unmasked position.

    That position is the EOS token where there is one. So Σ_t r_t = score − β·Σ_t kl_t.
    (Ziegler et al. 2019, eq. 2, spread over tokens as in Stiennon et al. 2020.)

    Args:
        scores_B: floating point or integer [B].
        logprobs_BT, ref_logprobs_BT: floating point [B, T], of the sampled tokens.
        response_mask_BT: bool or 0/1 [B, T], with holes or padding on either side.
        kl_coef: β.
        kl_kind: "k1", "k2" or "k3" (`kl_estimate`).

    Returns: rewards_BT [B, T] in the compute dtype, 0 where masked.
    Raises: ValueError for a row without an unmasked position, another kind, shape or dtype.
    """
    mask_BT, (logprobs_BT, ref_logprobs_BT) = select_tokens(
        response_mask_BT, logprobs_BT=logprobs_BT, ref_logprobs_BT=ref_logprobs_BT
    )
    scores_B = _scores(scores_B, len(mask_BT))
    kl_BT = kl_estimate(logprobs_BT, ref_logprobs_BT, kl_kind)
    # Not 0·kl, which is NaN where the KL is infinite.
    penalty_BT = kl_coef * kl_BT if kl_coef else torch.zeros_like(kl_BT)
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    is_last_BT = positions_T == last_unmasked(mask_BT)[:, None]
    return zero_outside(mask_BT, -penalty_BT) + zero_outside(is_last_BT, scores_B[:, None])


def normalise_scores(scores_B: Tensor, *, mean: float, std: float) -> Tensor:
    """(score − mean) / std, with the statistics of samples from the reference policy.

    These are measured once and recorded with the reward model, so that the reference policy has
    mean 0 and standard deviation 1. (Stiennon et al. 2020, appendix; Ziegler et al. 2019.)

    Args:
        scores_B: floating point or integer [B].
        mean, std: in units of score.

    Returns: scores_B [B] in the compute dtype, in deviations of the reference policy's scores.
    Raises: ValueError unless std is positive, or for another rank or dtype.
    """
    if not std > 0:
        raise ValueError(
            f"std is {std}; it must be positive: a reward model that scores all reference samples "
            "alike cannot be normalised"
        )
    return (_scores(scores_B) - mean) / std


def clip_scores(scores_B: Tensor, *, limit: float) -> Tensor:
    """min(max(score, −limit), limit), so that one score does not decide an update.

    (Zheng et al. 2023, arXiv 2307.04964, reward normalisation and clipping; DeepSpeed-Chat,
    Yao et al. 2023, `clip_reward_value` 5.)

    Args:
        scores_B: floating point or integer [B].
        limit: in units of score; inf for no clipping.

    Returns: scores_B [B] in the compute dtype.
    Raises: ValueError unless limit is positive, or for another rank or dtype.
    """
    if not limit > 0:
        raise ValueError(f"limit is {limit}; it must be positive")
    return _scores(scores_B).clamp(-limit, limit)


def penalise_missing_eos(scores_B: Tensor, has_eos_B: Tensor, *, penalty: float) -> Tensor:
    """score − penalty if and only if the response has no EOS (TRL's `missing_eos_penalty`).

    Args:
        scores_B: floating point or integer [B].
        has_eos_B: bool or 0/1 [B], True where the response ended by itself.
        penalty: in units of score, at least 0.

    Returns: scores_B [B] in the compute dtype.
    Raises: ValueError for a negative penalty, flags other than 0 and 1, another shape or dtype.
    """
    if not penalty >= 0:
        raise ValueError(f"penalty is {penalty}; it is subtracted, so give it as a positive number")
    has_eos_B = as_mask(has_eos_B, "has_eos_B")
    scores_B = _scores(scores_B)
    check_same_shape(scores_B=scores_B, has_eos_B=has_eos_B)
    return torch.where(has_eos_B, scores_B, scores_B - penalty)


def _scores(scores_B: Tensor, rows: int | None = None) -> Tensor:
    """The scores in the compute dtype, checked."""
    (scores_B,) = widen_scores(scores_B=scores_B)
    check_rank(1, scores_B=scores_B)
    if rows is not None and len(scores_B) != rows:
        raise ValueError(
            f"scores_B has {len(scores_B)} scores, but the mask has {rows} rows; give one score a "
            "response"
        )
    return scores_B
