"""Some rows of a tensor, with a backward pass that copies where autograd's would add."""

from typing import Any

import torch
from torch import Tensor


def take(x: Tensor, index_N: Tensor, dim: int = 0) -> Tensor:
    """x[index_N] along `dim`, for an index without repeats."""
    return _Take.apply(x, index_N, dim)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index_N: Tensor, dim: int) -> Tensor:
        ctx.shape, ctx.dim = x.shape, dim
        ctx.save_for_backward(index_N)
        return x.index_select(dim, index_N)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index_N,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(ctx.dim, index_N, grad), None, None
