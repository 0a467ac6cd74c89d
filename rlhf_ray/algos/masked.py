"""Means, moments and whitening over the unmasked elements of a tensor.

A mask is True where an element counts; a row is an index of the first dimension.
Results are float32 or better (float64 in, float64 out).
A masked element changes nothing: neither value nor gradient, even when it is NaN or inf.
Moments are (count, mean, var) with the population variance, the same for any split of the
elements: see `combine_moments`. They are summed in float64, so that equal numbers have no variance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_ray.algos.checks import as_mask, check_floating, check_rows, compute_dtype, zero_outside

VARIANCE_FLOOR = 1e-8

Moments = tuple[Tensor, Tensor, Tensor]


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the unmasked elements: Σ_i m_i·x_i / Σ_i m_i, over all or along `dim`.

    Along the tokens it is the mean pooling of Reimers and Gurevych 2019, section 3. A tensor with
    no rows at all has mean 0 (an empty tensor where `dim` keeps the rows), as in `masked_moments`.

    Args:
        x: floating point, any shape.
        mask: bool or 0/1, the shape of x, or 1 in dimensions to be repeated: features [B, T, D]
            are pooled with a mask [B, T, 1] and dim=1.
        dim: the dimension to reduce; None reduces all.

    Returns: x without `dim`, or a scalar, in the compute dtype.
    Raises: ValueError for a row without an unmasked element, whichever `dim` is; for a slice along
        `dim` without one; for another shape or dtype.
    """
    mask, x = _select(x, mask)
    check_rows(mask, "mask")
    count, total = (mask.sum(), x.sum()) if dim is None else (mask.sum(dim), x.sum(dim))
    if mask.numel() and not bool((count > 0).all()):
        raise ValueError(
            f"mask has a slice along dim={dim} without an unmasked element, so its mean is "
            "undefined; leave that slice out"
        )
    return total / count.clamp(min=1)


def masked_moments(x: Tensor, mask: Tensor) -> Moments:
    """Count, mean and population variance of all unmasked elements, as scalar tensors.

    mean = Σx/n, var = Σ(x − mean)²/n (the two-pass formula of Chan, Golub and LeVeque 1979). A
    tensor with no rows at all gives (0, 0, 0), so that a rank without data can take part in
    `combine_moments`.

    Args:
        x: floating point, any shape.
        mask: as for `masked_mean`.

    Returns: (count, mean, var); the count is int64, the others have the compute dtype.
    Raises: ValueError for a row without an unmasked element, another shape, or another dtype.
    """
    mask, x = _select(x, mask)
    check_rows(mask, "mask")
    count, mean, var = _moments(x.double(), mask)
    return count, mean.to(x), var.to(x)


def combine_moments(
    counts: Tensor | Sequence[Tensor] | Sequence[float],
    means: Tensor | Sequence[Tensor] | Sequence[float],
    variances: Tensor | Sequence[Tensor] | Sequence[float],
) -> Moments:
    """Moments of the union of R disjoint parts (ranks, micro-batches) from the parts' moments.

    n = Σn_r, mean = Σn_r·mean_r/n, var = Σn_r·(var_r + (mean_r − mean)²)/n: exact, in float64.
    (Chan, Golub and LeVeque 1979.)

    Args:
        counts, means, variances: R numbers each; a part with count 0 counts for nothing.

    Returns: (count, mean, var) as float64 scalars.
    Raises: ValueError when the three differ in length or nothing is counted.
    """
    counts_R, means_R, vars_R = (
        torch.as_tensor(v, dtype=torch.float64) for v in (counts, means, variances)
    )
    if counts_R.ndim != 1 or not counts_R.shape == means_R.shape == vars_R.shape:
        raise ValueError(
            f"counts, means and variances have shapes {tuple(counts_R.shape)}, "
            f"{tuple(means_R.shape)} and {tuple(vars_R.shape)}; give one number of each per part"
        )
    count = counts_R.sum()
    if not bool(count > 0):
        raise ValueError("all counts are 0, so there is no mean; combine parts that hold elements")
    used_R = counts_R > 0
    share_R = counts_R / count
    mean = (share_R * zero_outside(used_R, means_R)).sum()
    spread_R = vars_R + (means_R - mean).square()
    return count, mean, (share_R * zero_outside(used_R, spread_R)).sum()


def masked_whiten(
    x: Tensor, mask: Tensor, *, shift_mean: bool = True, stats: Moments | None = None
) -> Tensor:
    """(x − mean) / sqrt(var + 1e-8), with `+ mean` when the mean is not to be shifted; 0 if masked.

    (`whiten` of OpenAI's lm-human-preferences, Ziegler et al. 2019, with a mask; Huang et al. 2022,
    detail 7. TRL's `masked_whiten` has the variance with ddof 1.)

    Args:
        x: floating point, any shape.
        mask: as for `masked_mean`.
        shift_mean: False keeps the mean where it was.
        stats: (count, mean, var) of the whole batch over all ranks (`combine_moments`); by default
            those of x itself.

    Returns: the shape of x, in the compute dtype.
    Raises: ValueError for a row without an unmasked element, another shape, or another dtype.
    """
    mask, x = _select(x, mask)
    check_rows(mask, "mask")
    x64 = x.double()
    found = _moments(x64, mask) if stats is None else stats
    _, mean, var = (torch.as_tensor(v, dtype=x64.dtype, device=x64.device) for v in found)
    whitened = (x64 - mean) * torch.rsqrt(var + VARIANCE_FLOOR)
    return zero_outside(mask, whitened if shift_mean else whitened + mean).to(x.dtype)


def last_unmasked(mask_BT: Tensor) -> Tensor:
    """Index of the last unmasked position of each row: max{t : mask_t}.

    Args:
        mask_BT: bool or 0/1 [B, T]; holes and padding on either side are allowed.

    Returns: int64 [B].
    Raises: ValueError for a row without an unmasked position, or another rank.
    """
    mask_BT = as_mask(mask_BT, "mask_BT")
    if mask_BT.ndim != 2:
        raise ValueError(f"mask_BT has shape {tuple(mask_BT.shape)}, but [B, T] is needed")
    check_rows(mask_BT, "mask_BT")
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    if not len(mask_BT):
        return positions_T.new_zeros(0)
    return torch.where(mask_BT, positions_T, -1).amax(1)


def _moments(x: Tensor, mask: Tensor) -> Moments:
    """Of x, which is 0 where it is masked, in its own dtype."""
    count = mask.sum()
    n = count.clamp(min=1)
    mean = x.sum() / n
    return count, mean, zero_outside(mask, x - mean).square().sum() / n


def _select(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mask in the shape of x, and x in the compute dtype with 0 where it is masked."""
    check_floating(x=x)
    mask = as_mask(mask, "mask")
    fits = mask.ndim == x.ndim and all(
        m in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)} and x has {tuple(x.shape)}; give them one shape, "
            "or a mask with size 1 in the dimensions to repeat"
        )
    mask = mask.expand(x.shape)
    return mask, zero_outside(mask, x.to(compute_dtype(x)))
