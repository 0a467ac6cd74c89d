"""Llama-style decoder layers with a backward pass by hand: fewer passes over memory on a CPU.

Between matrix products, a layer run by autograd makes dozens of small passes over activations:
norms in float32 step by step, rotary in halves, gradients of q, k, v and gate, up to add. Here a
norm is five passes, rotary and the scale of the scores one step, gradients are added within the
products, and attention is two batched products. A tenth of a layer's time at 256 features.

`fuse_layers` replaces the forward pass only of layers whose output it reproduces.
Shapes: B rows, T positions, N = B·T, D features, H heads of K features on G ≤ H keys, I inner
features, R = H/G·T queries of one key.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LONGEST = 512  # beyond, T × T attention weights cost more than they save
DTYPE = torch.bfloat16  # float32 keeps to the layers' own code: it is the exact mode


@dataclass(frozen=True)
class LayerShape:
    """What the functions have to know besides the weights."""

    heads: int
    kv_heads: int
    head_size: int
    scaling: float
    eps: float


def fuse_layers(model: nn.Module) -> int:
    """Let every layer it can reproduce run fused once it is bfloat16, on a CPU; how many these are.

    Call it while the model is float32.

    A layer qualifies by its parts (RMSNorm, q/k/v/o, gate/up/down) and by giving the same output:
    compared in float32 on random input, to 1e-4. Others stay as they are.
    """
    count = 0
    for layer in model.modules():
        parts = _parts(layer)
        if parts is not None and _is_cpu32(parts) and _reproduces(layer, parts):
            layer.__class__ = _fused_class(type(layer))  # so that a copy runs its own weights
            count += 1
    return count


@dataclass(frozen=True)
class _Parts:
    shape: LayerShape
    norms: tuple[nn.Module, nn.Module]
    qkv: tuple[nn.Linear, nn.Linear, nn.Linear]
    out: nn.Linear
    gate_up: tuple[nn.Linear, nn.Linear]
    down: nn.Linear


def _parts(layer: Any) -> _Parts | None:
    """The layer's modules, if it is made as Llama's, Mistral's and Qwen2's are."""
    try:
        attention, mlp = layer.self_attn, layer.mlp
        norms = (layer.input_layernorm, layer.post_attention_layernorm)
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        out, gate_up, down = attention.o_proj, (mlp.gate_proj, mlp.up_proj), mlp.down_proj
        size = attention.head_dim
        shape = LayerShape(
            heads=qkv[0].out_features // size,
            kv_heads=qkv[1].out_features // size,
            head_size=size,
            scaling=attention.scaling,
            eps=norms[0].variance_epsilon,
        )
    except AttributeError:
        return None
    if any(linear.bias is not None for linear in (out, *gate_up, down)):
        return None
    return _Parts(shape, norms, qkv, out, gate_up, down)


def _is_cpu32(parts: _Parts) -> bool:
    weight = parts.out.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32


@torch.no_grad()
def _reproduces(layer: nn.Module, parts: _Parts) -> bool:
    """Whether fused and own forward agree, in float32 on random input."""
    weight = parts.out.weight
    generator = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(2, 7, weight.shape[0], generator=generator).to(weight)
    angles_TK = torch.arange(7.0)[:, None] * torch.rand(
        parts.shape.head_size // 2, generator=generator
    )
    angles_TK = torch.cat([angles_TK, angles_TK], 1).to(weight)
    cos_1TK, sin_1TK = angles_TK.cos()[None], angles_TK.sin()[None]
    own = layer(x_BTD, position_embeddings=(cos_1TK, sin_1TK), attention_mask=None)
    own = own[0] if isinstance(own, tuple) else own
    fused = _fused(x_BTD, cos_1TK, sin_1TK, parts)
    return own.shape == fused.shape and torch.allclose(own, fused, rtol=1e-4, atol=1e-4)


@functools.cache
def _fused_class(own: type[nn.Module]) -> type[nn.Module]:
    """`own` with a forward pass that is fused where it can be."""

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        angles = kwargs.get("position_embeddings")
        suits = (
            not args
            and angles is not None
            and angles[0].shape[0] == 1
            and hidden_states.dtype == DTYPE
            and hidden_states.device.type == "cpu"
            and hidden_states.shape[1] <= LONGEST
            and kwargs.get("attention_mask") is None
            and kwargs.get("past_key_values") is None
        )
        if not suits:
            return own.forward(self, hidden_states, *args, **kwargs)
        parts = _parts(self)
        assert parts is not None
        return _fused(hidden_states, angles[0], angles[1], parts)

    return type(f"Fused{own.__name__}", (own,), {"forward": forward})


def _fused(x_BTD: Tensor, cos_1TK: Tensor, sin_1TK: Tensor, parts: _Parts) -> Tensor:
    x_BTD = _Attention.apply(
        x_BTD,
        cos_1TK[0],
        sin_1TK[0],
        parts.shape,
        parts.norms[0].weight,
        parts.out.weight,
        *[linear.weight for linear in parts.qkv],
        *[linear.bias for linear in parts.qkv],
    )
    gate, up = parts.gate_up
    return _MLP.apply(
        x_BTD, parts.shape.eps, parts.norms[1].weight, gate.weight, up.weight, parts.down.weight
    )


class _Attention(torch.autograd.Function):
    """x + attention(norm(x))."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        cos_TK: Tensor,
        sin_TK: Tensor,
        shape: LayerShape,
        norm_D: Tensor,
        out_DE: Tensor,
        *qkv: Any,
    ) -> Tensor:
        B, T, D = x_BTD.shape
        x_ND = x_BTD.reshape(B * T, D)
        unit_ND, scale_N1 = _unit(x_ND, shape.eps)
        normed_ND = unit_ND * norm_D
        weights, biases = qkv[:3], qkv[3:]
        raw = [F.linear(normed_ND, w, b) for w, b in zip(weights, biases, strict=True)]
        queries, keys, values = _to_heads(raw, cos_TK, sin_TK, shape, (B, T))
        scores = torch.baddbmm(_later(T, shape, x_BTD), queries, keys.transpose(1, 2))
        probs = torch.softmax(scores, -1)
        mixed_NE = _from_heads(torch.bmm(probs, values), (B, T, shape.heads))
        ctx.save_for_backward(
            unit_ND, scale_N1, queries, keys, values, probs, mixed_NE,
            cos_TK, sin_TK, norm_D, out_DE, *weights,
        )  # fmt: skip
        ctx.shape, ctx.biased, ctx.size = shape, biases[0] is not None, (B, T, D)
        return torch.addmm(x_ND, mixed_NE, out_DE.t()).view(B, T, D)

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        (unit_ND, scale_N1, queries, keys, values, probs, mixed_NE,
         cos_TK, sin_TK, norm_D, out_DE, *weights) = ctx.saved_tensors  # fmt: skip
        B, T, D = ctx.size
        shape = ctx.shape
        grad_ND = grad_BTD.reshape(B * T, D)
        grad_mixed = _split_heads(grad_ND @ out_DE, shape, (B, T))
        grad_values = torch.bmm(probs.transpose(1, 2), grad_mixed)
        grad_probs = torch.bmm(grad_mixed, values.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
        grad_queries = torch.bmm(grad_scores, keys)
        grad_keys = torch.bmm(grad_scores.transpose(1, 2), queries)
        grads = _heads_backward(
            (grad_queries, grad_keys, grad_values), cos_TK, sin_TK, shape, (B, T)
        )
        grad_x_ND, grad_norm, grad_weights = _projected_backward(
            grads, weights, unit_ND, scale_N1, norm_D, grad_ND
        )
        grad_biases = [grad.sum(0) if ctx.biased else None for grad in grads]
        return (
            grad_x_ND.view(B, T, D), None, None, None, grad_norm, grad_ND.t() @ mixed_NE,
            *grad_weights, *grad_biases,
        )  # fmt: skip


class _MLP(torch.autograd.Function):
    """x + down(silu(gate(norm(x))) · up(norm(x)))."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        eps: float,
        norm_D: Tensor,
        gate_ID: Tensor,
        up_ID: Tensor,
        down_DI: Tensor,
    ) -> Tensor:
        x_ND = x_BTD.reshape(-1, x_BTD.shape[2])
        unit_ND, scale_N1 = _unit(x_ND, eps)
        normed_ND = unit_ND * norm_D
        gate_NI, up_NI = normed_ND @ gate_ID.t(), normed_ND @ up_ID.t()
        active_NI = F.silu(gate_NI)
        product_NI = active_NI * up_NI
        ctx.save_for_backward(
            unit_ND, scale_N1, gate_NI, up_NI, active_NI, product_NI,
            norm_D, gate_ID, up_ID, down_DI,
        )  # fmt: skip
        return torch.addmm(x_ND, product_NI, down_DI.t()).view_as(x_BTD)

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        (unit_ND, scale_N1, gate_NI, up_NI, active_NI, product_NI,
         norm_D, gate_ID, up_ID, down_DI) = ctx.saved_tensors  # fmt: skip
        grad_ND = grad_BTD.reshape(-1, grad_BTD.shape[2])
        grad_NI = grad_ND @ down_DI
        grad_up_NI = grad_NI * active_NI
        grad_gate_NI = torch.ops.aten.silu_backward(grad_NI.mul_(up_NI), gate_NI)
        grad_x_ND, grad_norm, grads = _projected_backward(
            [grad_gate_NI, grad_up_NI], [gate_ID, up_ID], unit_ND, scale_N1, norm_D, grad_ND
        )
        return grad_x_ND.view_as(grad_BTD), None, grad_norm, *grads, grad_ND.t() @ product_NI


def _unit(x_ND: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x / rms(x) in x's dtype, 1 / rms(x) in float32)."""
    x32_ND = x_ND.float()
    norm_N1 = torch.linalg.vector_norm(x32_ND, dim=1, keepdim=True)
    scale_N1 = torch.rsqrt(norm_N1.square_().div_(x_ND.shape[1]).add_(eps))
    return (x32_ND * scale_N1).to(x_ND.dtype), scale_N1


def _projected_backward(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    unit_ND: Tensor,
    scale_N1: Tensor,
    norm_D: Tensor,
    residual_ND: Tensor,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of (x, norm, weights) where each weight projects norm(x), and x goes round as well.

    With u = x/rms(x) and g the gradient of u: residual + (g − u·mean(g·u)) / rms(x).
    """
    normed_ND = unit_ND * norm_D
    grad_weights = [grad.t() @ normed_ND for grad in grads]
    grad_normed_ND = grads[0] @ weights[0]
    for grad, weight in zip(grads[1:], weights[1:], strict=True):
        grad_normed_ND.addmm_(grad, weight)
    grad_norm = (grad_normed_ND * unit_ND).sum(0)
    total_ND, unit32_ND = grad_normed_ND.mul_(norm_D).float(), unit_ND.float()
    along_N1 = (total_ND * unit32_ND).mean(1, keepdim=True)
    total_ND.addcmul_(unit32_ND, along_N1, value=-1).mul_(scale_N1).add_(residual_ND)
    return total_ND.to(residual_ND.dtype), grad_norm, grad_weights


def _to_heads(
    raw: Sequence[Tensor],
    cos_TK: Tensor,
    sin_TK: Tensor,
    shape: LayerShape,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated, scaled queries [B·G, R, K], rotated keys and values [B·G, T, K], each contiguous."""
    B, T = size
    K, groups = shape.head_size, B * shape.kv_heads
    queries, keys, values = (part.view(B, T, -1, K).transpose(1, 2) for part in raw)
    signed_TK = _signed(sin_TK)
    scaled = _rotated(queries, cos_TK * shape.scaling, signed_TK * shape.scaling)
    rotated = _rotated(keys, cos_TK, signed_TK)
    return scaled.view(groups, -1, K), rotated.view(groups, T, K), values.reshape(groups, T, K)


def _heads_backward(
    grads: tuple[Tensor, Tensor, Tensor],
    cos_TK: Tensor,
    sin_TK: Tensor,
    shape: LayerShape,
    size: tuple[int, int],
) -> list[Tensor]:
    """The transpose of `_to_heads`: gradients of raw q, k, v, [N, heads·K] each."""
    B, T = size
    back_TK = _signed(sin_TK).neg()
    queries, keys, values = (grad.view(B, -1, T, shape.head_size) for grad in grads)
    raw = (
        _rotated(queries, cos_TK * shape.scaling, back_TK * shape.scaling),
        _rotated(keys, cos_TK, back_TK),
        values,
    )
    return [part.transpose(1, 2).reshape(B * T, -1) for part in raw]


def _rotated(x_BHTK: Tensor, cos_TK: Tensor, signed_TK: Tensor) -> Tensor:
    """x·cos + (x with its halves swapped)·signed, contiguous."""
    out = torch.empty(x_BHTK.shape, dtype=x_BHTK.dtype, device=x_BHTK.device)
    torch.mul(x_BHTK, cos_TK, out=out)
    return out.addcmul_(torch.roll(x_BHTK, x_BHTK.shape[3] // 2, 3), signed_TK)


def _signed(sin_TK: Tensor) -> Tensor:
    """sin with its first half negated: rotary takes −x₂ there."""
    first, second = sin_TK.chunk(2, 1)
    return torch.cat([-first, second], 1)


def _split_heads(x_NE: Tensor, shape: LayerShape, size: tuple[int, int]) -> Tensor:
    """[N, H·K] as [B·G, R, K]."""
    B, T = size
    heads = x_NE.view(B, T, -1, shape.head_size).transpose(1, 2)
    return heads.reshape(B * shape.kv_heads, -1, shape.head_size)


def _from_heads(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    """[B·G, R, K] as [N, H·K]; size is (B, T, H)."""
    B, T, H = size
    return x.view(B, H, T, x.shape[2]).transpose(1, 2).reshape(B * T, -1)


def _later(T: int, shape: LayerShape, like: Tensor) -> Tensor:
    """−inf where a key comes after the query, [R, T]."""
    later_TT = torch.full((T, T), float("-inf"), dtype=like.dtype, device=like.device).triu(1)
    return later_TT.repeat(shape.heads // shape.kv_heads, 1)
