"""Checks and casts that every public function of `algos` begins with.

A mask is True where an element counts: bool, or 0 and 1 in any dtype. Scores may be integers, which
become float32; whatever else is computed with (log-probabilities, values, rewards) may not, so that
token ids are not taken for them.
Shapes: B responses, T response positions (padded), N any one dimension.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

Denominator = float | Tensor | None


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: the widest of the inputs, and float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_floating(**tensors: Tensor) -> None:
    """Raises ValueError for a tensor that is not floating point."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(
                f"{name} has dtype {tensor.dtype}, but a floating point tensor is needed; "
                f"pass {name}.float()"
            )


def check_rank(rank: int, **tensors: Tensor) -> None:
    """Raises ValueError for a tensor with another number of dimensions."""
    for name, tensor in tensors.items():
        if tensor.ndim != rank:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, but {rank} dimension(s) are needed; "
                "reshape it before the call"
            )


def check_same_shape(**tensors: Tensor) -> None:
    """Raises ValueError unless all the tensors have the shape of the first."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.shape != first.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and {first_name} has "
                f"{tuple(first.shape)}; pad or slice them to one shape"
            )


def check_range(low: float, high: float, **values: float) -> None:
    """Raises ValueError for a number outside [low, high] or not a number."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; it must lie in [{low:g}, {high:g}]")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises ValueError for a name that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")


def check_ids(like: Tensor, **ids: Tensor) -> None:
    """Raises ValueError unless the ids are integers, one for each element of `like`."""
    for name, tensor in ids.items():
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise ValueError(
                f"{name} has dtype {tensor.dtype}, but ids are integers; pass {name}.long()"
            )
        if tensor.shape != like.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, but one id is needed for each of the "
                f"{tuple(like.shape)} scores"
            )


def as_mask(mask: Tensor, name: str = "response_mask_BT") -> Tensor:
    """The mask as bool, from bool or from 0 and 1 in any dtype.

    Raises ValueError for any other number, NaN included: weights, ids and lengths are no masks.
    """
    if mask.dtype == torch.bool:
        return mask
    is_one = mask == 1
    if not bool((is_one | (mask == 0)).all()):
        raise ValueError(
            f"{name} has dtype {mask.dtype} and values other than 0 and 1, which a mask has not; "
            f"pass {name}.bool() if all but 0 is meant as True"
        )
    return is_one


def check_rows(mask: Tensor, name: str = "response_mask_BT") -> None:
    """Raises ValueError when a row (an index of the first dimension) has no unmasked position.

    No rows at all is no error: a rank may be without data.
    """
    if mask.ndim and not len(mask):
        return
    filled = mask.flatten(1).any(1) if mask.ndim > 1 else mask.any().reshape(1)
    if not bool(filled.all()):
        empty = (~filled).nonzero().flatten().tolist()
        raise ValueError(
            f"{name} has no unmasked position in row(s) {empty[:8]}; leave these rows out, or "
            "mark the tokens that were sampled"
        )


def widen(**tensors: Tensor) -> list[Tensor]:
    """Tensors of one shape, all cast to one compute dtype.

    Raises ValueError when one is not floating point or has another shape.
    """
    check_floating(**tensors)
    return _one_dtype(**tensors)


def widen_scores(**tensors: Tensor) -> list[Tensor]:
    """Scores of one shape, all cast to one compute dtype; integers become float32.

    Raises ValueError when one is neither floating point nor integer, or has another shape.
    """
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool or tensor.is_complex():
            raise ValueError(
                f"{name} has dtype {tensor.dtype}, but scores are floating point or integers; "
                f"pass {name}.float()"
            )
    return _one_dtype(**tensors)


def select_tokens(response_mask_BT: Tensor, **tensors_BT: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The mask as bool, and the tensors in one compute dtype with 0 wherever it is False.

    The zeros go in by `where` before any arithmetic, so that a NaN or inf in a masked position
    reaches neither a value nor a gradient.
    Raises ValueError for another rank or shape, an integer tensor, or a row without a token.
    """
    mask_BT = as_mask(response_mask_BT)
    check_rank(2, response_mask_BT=mask_BT, **tensors_BT)
    check_same_shape(response_mask_BT=mask_BT, **tensors_BT)
    check_rows(mask_BT)
    return mask_BT, [zero_outside(mask_BT, tensor_BT) for tensor_BT in widen(**tensors_BT)]


def zero_outside(mask: Tensor, x: Tensor) -> Tensor:
    """x where the mask is True, 0 elsewhere; the gradient is 0 elsewhere too."""
    return torch.where(mask, x, x.new_zeros(()))


def divide(total: Tensor, denominator: Denominator, terms: Tensor) -> Tensor:
    """total / denominator, by default the number of terms (1 when there is none: 0 / 1 = 0).

    Raises ValueError for a denominator that is not one positive, finite number.
    """
    if denominator is None:
        return total / terms.to(total.dtype).clamp(min=1)
    number = float(denominator) if torch.as_tensor(denominator).numel() == 1 else math.nan
    if not 0 < number < math.inf:
        raise ValueError(
            f"denominator is {denominator}; it must be one positive number: that of the terms of "
            "the whole step, over all micro-batches and ranks"
        )
    return total / number


def _one_dtype(**tensors: Tensor) -> list[Tensor]:
    check_same_shape(**tensors)
    dtype = compute_dtype(*tensors.values())
    return [tensor.to(dtype) for tensor in tensors.values()]
