"""Advantage estimators, and the table of what each of them needs.

To add one: write the function, and give it a row in `ESTIMATORS`.
Shapes: B responses, T response positions (padded). Whitening is the caller's (`masked_whiten`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf_ray.algos.checks import (
    as_mask,
    check_floating,
    check_ids,
    check_range,
    check_rank,
    check_rows,
    compute_dtype,
    select_tokens,
    widen_scores,
    zero_outside,
)


def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eqs. 11 to 16).

    δ_t = r_t + γ·V_{t'} − V_t,  A_t = δ_t + γλ·A_{t'},  returns_t = A_t + V_t,
    where t' is the next unmasked position: a hole is not discounted. V and A are 0 past the last
    one, after truncation too. V_t is the value before the action at t.

    Args:
        rewards_BT: floating point [B, T], from `shaped_rewards`.
        values_BT: floating point [B, T].
        response_mask_BT: bool or 0/1 [B, T], with holes or padding on either side.
        gamma, lam: γ and λ, in [0, 1].

    Returns: (advantages_BT, returns_BT) [B, T] in the compute dtype, 0 where masked.
    Raises: ValueError for γ or λ out of range, a row without an unmasked position, another shape
        or dtype.
    """
    check_range(0, 1, gamma=gamma, lam=lam)
    mask_BT, (rewards_BT, values_BT) = select_tokens(
        response_mask_BT, rewards_BT=rewards_BT, values_BT=values_BT
    )
    deltas_BT = rewards_BT + gamma * _next_unmasked(values_BT, mask_BT) - values_BT
    advantages_BT = _discounted_sums(deltas_BT, mask_BT, gamma * lam)
    return advantages_BT, advantages_BT + values_BT


def reinforce_pp(
    rewards_BT: Tensor, response_mask_BT: Tensor, *, gamma: float
) -> tuple[Tensor, Tensor]:
    """Discounted sums of shaped rewards to the end (REINFORCE++, Hu 2025, without the whitening).

    G_t = r_t + γ·G_{t'}, with t' the next unmasked position and 0 past the last one.
    (Hu 2025, arXiv 2501.03262; the recursion is that of Sutton and Barto 2018, eq. 3.9.)

    Args:
        rewards_BT: floating point [B, T], from `shaped_rewards`.
        response_mask_BT: bool or 0/1 [B, T].
        gamma: γ, in [0, 1].

    Returns: (advantages_BT, returns_BT), both G, [B, T] in the compute dtype, 0 where masked; two
        tensors, so that one may be whitened in place.
    Raises: ValueError for γ out of range, a row without an unmasked position, another shape or
        dtype.
    """
    check_range(0, 1, gamma=gamma)
    mask_BT, (rewards_BT,) = select_tokens(response_mask_BT, rewards_BT=rewards_BT)
    returns_BT = _discounted_sums(rewards_BT, mask_BT, gamma)
    return returns_BT, returns_BT.clone()


def rloo(scores_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Score minus the mean of the others of its group (REINFORCE leave-one-out).

    A_i = s_i − Σ_{j≠i} s_j/(n − 1) = (s_i − mean)·n/(n − 1). The KL goes in beforehand:
    s = score − β·Σ_t k1 (`response_kl`).
    (Ahmadian et al. 2024, arXiv 2402.14740, the RLOO estimator; Kool et al. 2019.)

    Args:
        scores_B: floating point or integer [B].
        group_ids_B: integers [B], in any order.

    Returns: advantages_B [B] in the compute dtype (`per_token` spreads them).
    Raises: ValueError for a group of one, another shape or dtype.
    """
    centred_B, sizes_B, _ = _centred(scores_B, group_ids_B)
    return (centred_B * sizes_B / (sizes_B - 1)).to(compute_dtype(scores_B))


def grpo(scores_B: Tensor, group_ids_B: Tensor, *, scale: bool = True) -> Tensor:
    """(score − mean) / (std + 1e-4) in its group (Shao et al. 2024, section 4.1.2).

    std has ddof 1. The KL goes in the loss, as k3 (`kl_loss`).

    Args:
        scores_B: floating point or integer [B].
        group_ids_B: integers [B], in any order.
        scale: False leaves the division out (Liu et al. 2025, "Dr. GRPO").

    Returns: advantages_B [B] in the compute dtype (`per_token` spreads them).
    Raises: ValueError for a group of one, another shape or dtype.
    """
    centred_B, sizes_B, group_B = _centred(scores_B, group_ids_B)
    if scale:
        variances_B = _group_sums(centred_B.square(), group_B)[group_B] / (sizes_B - 1)
        # The root has no derivative at 0, where all of a group score alike.
        std_B = torch.where(variances_B > 0, variances_B, 1.0).sqrt() * (variances_B > 0)
        centred_B = centred_B / (std_B + 1e-4)
    return centred_B.to(compute_dtype(scores_B))


def per_token(advantages_B: Tensor, response_mask_BT: Tensor) -> Tensor:
    """One advantage a response, given to each of its tokens: A_{b,t} = A_b where unmasked, else 0.

    (Outcome supervision, Shao et al. 2024, section 4.1.2.)

    Args:
        advantages_B: floating point [B].
        response_mask_BT: bool or 0/1 [B, T].

    Returns: advantages_BT [B, T] in the compute dtype, 0 where masked.
    Raises: ValueError for a row without an unmasked position, another shape or dtype.
    """
    check_floating(advantages_B=advantages_B)
    check_rank(1, advantages_B=advantages_B)
    mask_BT = as_mask(response_mask_BT)
    check_rank(2, response_mask_BT=mask_BT)
    if len(advantages_B) != len(mask_BT):
        raise ValueError(
            f"advantages_B has {len(advantages_B)} rows and response_mask_BT {len(mask_BT)}; give "
            "one advantage a response"
        )
    check_rows(mask_BT)
    return zero_outside(mask_BT, advantages_B.to(compute_dtype(advantages_B))[:, None])


@dataclass(frozen=True, slots=True)
class Estimator:
    """An advantage estimator and what the loop has to know of it.

    Attributes:
        fn: the function.
        needs_values: takes values_BT, so a critic is trained.
        needs_group: takes group_ids_B and scores_B, so each prompt has two responses or more.
        kl_in: "reward" where the KL is part of the reward (k1), "loss" where the loss adds it (k3).
    """

    fn: Callable[..., Any]
    needs_values: bool
    needs_group: bool
    kl_in: Literal["reward", "loss"]


ESTIMATORS: dict[str, Estimator] = {
    "gae": Estimator(gae, needs_values=True, needs_group=False, kl_in="reward"),
    "rloo": Estimator(rloo, needs_values=False, needs_group=True, kl_in="reward"),
    "grpo": Estimator(grpo, needs_values=False, needs_group=True, kl_in="loss"),
    "reinforce_pp": Estimator(reinforce_pp, needs_values=False, needs_group=False, kl_in="reward"),
}


def _next_unmasked(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The value at the next unmasked position after t, 0 past the last one."""
    length = mask_BT.shape[1]
    positions_T = torch.arange(length, device=mask_BT.device)
    here_BT = torch.where(mask_BT, positions_T, length)
    at_or_after_BT = here_BT.flip(1).cummin(1).values.flip(1)
    after_BT = F.pad(at_or_after_BT[:, 1:], (0, 1), value=length)
    return F.pad(values_BT, (0, 1)).gather(1, after_BT)


def _discounted_sums(x_BT: Tensor, mask_BT: Tensor, discount: float) -> Tensor:
    """S_t = x_t + discount·S_{t'} where unmasked, 0 where masked, by doubling.

    A masked position hands on what comes after it as it is: it adds nothing and does not discount.
    After s steps S_t holds the terms of [t, t + 2^s) and decay_t their joint discount, so a length
    of T takes log2(T) steps, and what is summed in which order does not depend on the padding.
    """
    sums_BT = zero_outside(mask_BT, x_BT)
    decay_BT = torch.where(mask_BT, x_BT.new_tensor(discount), x_BT.new_ones(()))
    span = 1
    while span < x_BT.shape[1]:
        sums_BT = sums_BT + decay_BT * F.pad(sums_BT[:, span:], (0, span))
        decay_BT = decay_BT * F.pad(decay_BT[:, span:], (0, span), value=1.0)
        span *= 2
    return zero_outside(mask_BT, sums_BT)


def _centred(scores_B: Tensor, group_ids_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score minus its group's mean, the group's size, and the group's index from 0, each [B].

    float64: a group that scores alike then has exactly no advantage.
    """
    (scores_B,) = widen_scores(scores_B=scores_B)
    check_rank(1, scores_B=scores_B)
    check_ids(scores_B, group_ids_B=group_ids_B)
    scores_B = scores_B.double()
    ids_G, group_B, sizes_G = torch.unique(group_ids_B, return_inverse=True, return_counts=True)
    if bool((sizes_G < 2).any()):
        alone = ids_G[sizes_G < 2].tolist()
        raise ValueError(
            f"group(s) {alone[:8]} hold one response only, which has nothing to be compared with; "
            "sample two responses a prompt at least"
        )
    means_G = _group_sums(scores_B, group_B) / sizes_G
    return scores_B - means_G[group_B], sizes_G[group_B].to(scores_B), group_B


def _group_sums(x_B: Tensor, group_B: Tensor) -> Tensor:
    """Σ of x over each group, [G]."""
    groups = int(group_B.max()) + 1 if len(group_B) else 0
    return x_B.new_zeros(groups).index_add(0, group_B, x_B)
