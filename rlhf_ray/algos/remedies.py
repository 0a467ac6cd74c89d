"""What to do with labels in doubt, given their preference strength (Wang et al. 2024, section 2).

`ranking.preference_strength` gives the strength: the mean gap over models. These functions choose
pairs, their targets and margins; `ranking.pairwise_loss` takes the two.
Shapes: P pairs, M models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algos.checks import (
    as_mask,
    check_floating,
    check_range,
    check_rank,
    compute_dtype,
    widen,
)


def weakest(
    strength_P: Tensor, *, fraction: float | None = None, threshold: float | None = None
) -> Tensor:
    """Marks the pairs of least strength: floor(fraction·P) of them, or those below a threshold.

    (Wang et al. 2024, section 2.) Among equals the one that comes first is taken first.

    Args:
        strength_P: floating point [P], μ̂ of `preference_strength`.
        fraction: share of the pairs, in [0, 1].
        threshold: in units of score; the pairs below it are marked.

    Returns: bool [P].
    Raises: ValueError unless exactly one of fraction (in [0, 1]) and threshold is given; for NaN,
        another rank or dtype.
    """
    strength_P = _strength(strength_P)
    if fraction is None and threshold is not None:
        return strength_P < threshold
    if fraction is None or threshold is not None:
        raise ValueError(
            f"fraction is {fraction} and threshold is {threshold}; give exactly one of them"
        )
    check_range(0, 1, fraction=fraction)
    weak_P = torch.zeros(len(strength_P), dtype=torch.bool, device=strength_P.device)
    count = int(fraction * len(strength_P) + 1e-9)
    weak_P[strength_P.argsort(stable=True)[:count]] = True
    return weak_P


def soft_targets(gaps_MP: Tensor) -> Tensor:
    """q = mean over models of σ(gap): how probable they hold the label to be.

    (Soft labels, Wang et al. 2024, section 2.)

    Args:
        gaps_MP: floating point [M, P], chosen − rejected, one row a model.

    Returns: target_P [P] in the compute dtype.
    Raises: ValueError for no models, another rank or dtype.
    """
    check_floating(gaps_MP=gaps_MP)
    check_rank(2, gaps_MP=gaps_MP)
    if not len(gaps_MP):
        raise ValueError("gaps_MP has no rows; give the gaps of one model at least")
    return gaps_MP.to(compute_dtype(gaps_MP)).sigmoid().mean(0)


def smoothed_targets(weak_P: Tensor, *, label_smoothing: float) -> Tensor:
    """q = 1 − α where the pair is weak, 1 elsewhere: label smoothing for doubtful pairs only.

    (Wang et al. 2024, section 2.)

    Args:
        weak_P: bool or 0/1 [P], from `weakest`.
        label_smoothing: α.

    Returns: target_P, float32 [P].
    Raises: ValueError for a weak_P with values other than 0 and 1, another rank, or an α outside
        [0, 1].
    """
    check_rank(1, weak_P=weak_P)
    check_range(0, 1, label_smoothing=label_smoothing)
    return 1 - label_smoothing * as_mask(weak_P, "weak_P").float()


def strength_margins(
    strength_P: Tensor, *, scale: float = 1.0, limit: float = float("inf")
) -> Tensor:
    """Adaptive margin: scale·μ̂, clipped to [−limit, limit] (Wang et al. 2024, eq. 6).

    Negative where the label is doubted, so that the pair asks for less.

    Args:
        strength_P: floating point [P], μ̂ of `preference_strength`, in units of score.
        scale: any number.
        limit: in units of score, positive; inf for no clipping.

    Returns: margin_P [P] in the compute dtype.
    Raises: ValueError for a limit that is not positive, NaN, another rank or dtype.
    """
    if not limit > 0:
        raise ValueError(f"limit is {limit}; it must be positive")
    return (_strength(strength_P) * scale).clamp(-limit, limit)


def _strength(strength_P: Tensor) -> Tensor:
    (strength_P,) = widen(strength_P=strength_P)
    check_rank(1, strength_P=strength_P)
    if bool(strength_P.isnan().any()):
        raise ValueError("strength_P holds NaN; some model gave no finite score")
    return strength_P
