"""RMSNorm with few passes over memory: by hand on a CPU, by torch's kernel in bfloat16 on a GPU.

By hand is half the time of autograd: forward and backward of 2,048 × 256 on 2 cores: in bfloat16
0.9 ms here, 1.7 ms step by step; in float32, elsewhere, 1.7 and 2.8; a layer has two. torch's
kernel rounds once, where the module rounds x·s and its product with the weight. Other types and
devices keep the module's own code.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def use_short_norms(model: nn.Module) -> None:
    """Let each RMSNorm of `model` that it can reproduce run so.

    Found by its parts and by its output on random input; others (Gemma's 1 + weight) stay as
    they are. State and configuration stay what they were.
    """
    for module in model.modules():
        if _is_plain(module):
            own: Any = type(module)
            module.__class__ = _short_class(own)  # so that a copy has its own weight


def _is_plain(module: Any) -> bool:
    if not (type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")):
        return False
    weight_D = module.weight.detach()
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(3, len(weight_D), generator=generator).to(weight_D)
    with torch.no_grad():
        ours_ND = _RMSNorm.apply(x_ND, weight_D, module.variance_epsilon)
        return torch.allclose(module(x_ND), ours_ND, rtol=1e-5, atol=1e-6)


@functools.cache
def _short_class(own: Any) -> Any:
    """`own` with another forward pass where there is a shorter one."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        norm = _SHORTER.get((hidden_states.device.type, hidden_states.dtype))
        if norm is None:
            return own.forward(self, hidden_states)
        return norm(hidden_states, self.weight, self.variance_epsilon)

    return type(f"Short{own.__name__}", (own,), {"forward": forward})


def _fused(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight_D.shape, weight_D, eps)


class _RMSNorm(torch.autograd.Function):
    """u·weight with u = x·s, s = 1 / √(mean(x²) + eps) in float32, along the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        s = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
        s = torch.rsqrt(s.square_().div_(x.shape[-1]).add_(eps))
        u = (x32 * s).to(x.dtype)
        ctx.save_for_backward(u, s, weight_D)
        return u * weight_D

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """With g the gradient of u: (g − u·mean(g·u))·s for x, Σ grad·u for the weight."""
        u, s, weight_D = ctx.saved_tensors
        grad_weight_D = (grad * u).flatten(0, -2).sum(0)
        g, u32 = (grad * weight_D).float(), u.float()
        along = (g * u32).mean(-1, keepdim=True)
        return g.addcmul_(u32, along, value=-1).mul_(s).to(grad.dtype), grad_weight_D, None


_SHORTER: dict[tuple[str, torch.dtype], Callable[[Tensor, Tensor, float], Tensor]] = {
    ("cpu", torch.bfloat16): _RMSNorm.apply,
    ("cpu", torch.float32): _RMSNorm.apply,
    ("cuda", torch.bfloat16): _fused,
}
