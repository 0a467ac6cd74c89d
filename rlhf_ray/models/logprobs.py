"""Log-probabilities of responses without ever holding the full logits.

The language head is applied to the hidden states of response positions only, a chunk of rows at a
time; the backward pass computes each chunk's logits again, unless one chunk was all. So peak memory
holds one chunk, whatever the vocabulary times the tokens.

Shapes: N response tokens end to end, D features, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf_ray.models.shapes import TOKENS, compiles_each

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}  # of float32 logits


@dataclass(frozen=True)
class HeadShape:
    """What a model does to its logits after the head: softcap·tanh(logits·scale/softcap).

    scale multiplies (Cohere's `logit_scale`, 1 / Granite's `logits_scaling`); softcap is Gemma 2's
    `final_logit_softcapping`.
    """

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> "HeadShape":
        """Read from a transformers config; `check_head` finds what is not known here."""
        config = config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        divisor = getattr(config, "logits_scaling", None) or 1.0
        return cls(scale / divisor, getattr(config, "final_logit_softcapping", None))


class _Logprobs(torch.autograd.Function):
    """log softmax(logits / temperature)[target], in chunks of rows."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        shape: HeadShape,
        temperature: float,
        entropy: bool,
        learns: bool,
    ) -> tuple[Tensor, Tensor]:
        logprobs_N = hidden_ND.new_empty(len(targets_N), dtype=_softmax_dtype(hidden_ND))
        entropies_N = torch.zeros_like(logprobs_N)
        chunks = _chunks(hidden_ND, weight_VD)
        keep = learns and len(chunks) == 1 and not shape.softcap
        probs_NV = None
        for rows in chunks:
            logits_CV, _ = _logits(hidden_ND[rows], weight_VD, bias_V, shape, temperature)
            logp_CV = torch.log_softmax(logits_CV, 1)
            logprobs_N[rows] = logp_CV.gather(1, targets_N[rows, None]).squeeze(1)
            if entropy:
                logp_CV.clamp_(min=torch.finfo(logp_CV.dtype).min)  # 0·log 0 is 0
                entropies_N[rows] = torch.exp(logp_CV, out=logits_CV).mul_(logp_CV).sum(1).neg_()
            if keep:
                probs_NV = logp_CV.exp_().to(hidden_ND.dtype)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, logprobs_N, probs_NV)
        ctx.shape, ctx.temperature = shape, temperature
        ctx.mark_non_differentiable(entropies_N)
        return logprobs_N, entropies_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """d logprob / d logits = onehot − softmax."""
        hidden_ND, weight_VD, bias_V, targets_N, logprobs_N, probs_NV = ctx.saved_tensors
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = grad_bias_V = None
        at_target_N = grad_N * -torch.expm1(logprobs_N)  # 1 − p, exact where p is near 1
        for rows in _chunks(hidden_ND, weight_VD):
            if probs_NV is not None:
                slope = ctx.shape.scale / ctx.temperature
                grad_CV = probs_NV * (grad_N * -slope)[:, None].to(probs_NV.dtype)
                at_target_C = at_target_N * slope
                grad_CV.scatter_(1, targets_N[:, None], at_target_C[:, None].to(grad_CV.dtype))
            else:
                logits_CV, slope_CV = _logits(
                    hidden_ND[rows], weight_VD, bias_V, ctx.shape, ctx.temperature
                )
                grad_CV = torch.softmax(logits_CV, 1).mul_(-grad_N[rows, None])
                grad_CV.scatter_(1, targets_N[rows, None], at_target_N[rows, None])
                grad_CV = grad_CV.mul_(slope_CV).to(hidden_ND.dtype)
            grad_hidden_ND[rows] = grad_CV @ weight_VD
            if ctx.needs_input_grad[1]:
                grad_weight_VD = _add(grad_weight_VD, grad_CV.t() @ hidden_ND[rows])
            if bias_V is not None and ctx.needs_input_grad[2]:
                grad_bias_V = _add(grad_bias_V, grad_CV.sum(0))
        return (
            grad_hidden_ND,
            None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
            None if grad_bias_V is None else grad_bias_V.to(weight_VD.dtype),
            *(None,) * 5,
        )


def response_logprobs(
    hidden_ND: Tensor,
    head: nn.Module,
    targets_N: Tensor,
    *,
    shape: HeadShape,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """log π(target) at each position, of the distribution sampled from: logits / temperature.

    Args:
        hidden_ND: final hidden states of the positions before each target, any float dtype.
        head: the model's output embeddings (`weight` [V, D], maybe `bias` [V]).
        targets_N: int64 token ids.
        shape: what else the model does to its logits.
        entropy: compute the distribution's entropy as well (no gradient), else zeros.

    Returns: (logprobs_N, entropies_N), float32 (of float64, float64), as the softmax itself.
    Raises: ValueError unless the temperature is positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; log-probabilities need a positive one")
    weight_VD = head.weight
    assert isinstance(weight_VD, Tensor)
    bias_V, tokens = getattr(head, "bias", None), len(targets_N)
    more = -tokens % TOKENS if compiles_each(hidden_ND) else 0
    if more and tokens + more <= _chunk_rows(hidden_ND, weight_VD):
        hidden_ND, targets_N = F.pad(hidden_ND, (0, 0, 0, more)), F.pad(targets_N, (0, more))
    learns = torch.is_grad_enabled()  # inside of the function it never is
    logprobs_N, entropies_N = _Logprobs.apply(
        hidden_ND, weight_VD, bias_V, targets_N, shape, temperature, entropy, learns
    )
    return logprobs_N[:tokens], entropies_N[:tokens]


def _logits(
    hidden_CD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    shape: HeadShape,
    temperature: float,
) -> tuple[Tensor, Tensor | float]:
    """(logits / temperature as they are softmaxed, their derivative by the product's output)."""
    logits_CV = _product(hidden_CD, weight_VD, bias_V)
    if shape.scale != 1:
        logits_CV = logits_CV * shape.scale
    slope: Tensor | float = shape.scale / temperature
    if shape.softcap:
        squashed_CV = torch.tanh(logits_CV / shape.softcap)
        logits_CV = squashed_CV * shape.softcap
        slope = (1 - squashed_CV.square()) * slope
    if temperature != 1:
        logits_CV = logits_CV / temperature
    return logits_CV, slope


def _product(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """The head's output, float32 at least. CUDA alone has a product of bfloat16 that gives it."""
    if hidden_CD.is_cuda and hidden_CD.dtype == torch.bfloat16:
        logits_CV = torch.mm(hidden_CD, weight_VD.t(), out_dtype=torch.float32)
        return logits_CV if bias_V is None else logits_CV.add_(bias_V)
    return F.linear(hidden_CD, weight_VD, bias_V).to(_softmax_dtype(hidden_CD))


def _chunks(hidden_ND: Tensor, weight_VD: Tensor) -> list[slice]:
    """Slices of rows whose float32 logits fit CHUNK_BYTES.

    An empty one where there is no row: gradients are zeros then, not None, as on other ranks.
    """
    rows = _chunk_rows(hidden_ND, weight_VD)
    return [slice(start, start + rows) for start in range(0, max(1, len(hidden_ND)), rows)]


def _chunk_rows(hidden_ND: Tensor, weight_VD: Tensor) -> int:
    return max(1, CHUNK_BYTES[hidden_ND.device.type] // (4 * len(weight_VD)))


def _softmax_dtype(hidden_ND: Tensor) -> torch.dtype:
    """float32 at least."""
    return torch.promote_types(hidden_ND.dtype, torch.float32)


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    """Running sum: float32 at least once there is more than one part."""
    return part if total is None else total.to(_softmax_dtype(part)).add_(part)
