"""Log-probabilities of responses without ever holding the full logits.

The language head is applied to the hidden states of response positions only, a chunk of rows at a
time; the backward pass computes each chunk's logits again. So peak memory holds one chunk,
whatever the vocabulary times the tokens.

Shapes: B rows, L input positions, N response tokens end to end, D features, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class _TakeRows(torch.autograd.Function):
    """x[index] along dimension 0 for an index without repeats: its backward copies, never adds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.rows = len(x)
        ctx.save_for_backward(index)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, *grad.shape[1:]).index_copy_(0, index, grad), None


def take_positions(hidden_BLD: Tensor, index_N: Tensor) -> Tensor:
    """hidden_ND: the positions `index_N` (into B·L, no repeats) of all rows, end to end."""
    return _TakeRows.apply(hidden_BLD.flatten(0, 1), index_N)


class _Logprobs(torch.autograd.Function):
    """log softmax(logits / temperature)[target], in chunks of rows, recomputed in the backward."""

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
    ) -> tuple[Tensor, Tensor]:
        logprobs_N = hidden_ND.new_empty(len(targets_N), dtype=torch.float32)
        entropies_N = torch.zeros_like(logprobs_N)
        for rows in _chunks(hidden_ND, weight_VD):
            logits_CV, _ = _logits(hidden_ND[rows], weight_VD, bias_V, shape, temperature)
            logp_CV = torch.log_softmax(logits_CV, 1)
            logprobs_N[rows] = logp_CV.gather(1, targets_N[rows, None]).squeeze(1)
            if entropy:
                entropies_N[rows] = torch.exp(logp_CV, out=logits_CV).mul_(logp_CV).sum(1).neg_()
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N)
        ctx.shape, ctx.temperature = shape, temperature
        ctx.mark_non_differentiable(entropies_N)
        return logprobs_N, entropies_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N = ctx.saved_tensors
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = grad_bias_V = None
        for rows in _chunks(hidden_ND, weight_VD):
            logits_CV, slope_CV = _logits(
                hidden_ND[rows], weight_VD, bias_V, ctx.shape, ctx.temperature
            )
            # d logprob / d logits = onehot − softmax
            grad_CV = torch.softmax(logits_CV, 1).mul_(-grad_N[rows, None])
            grad_CV.scatter_add_(1, targets_N[rows, None], grad_N[rows, None])
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
            *(None,) * 4,
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

    Returns: (logprobs_N, entropies_N), float32; softmax in float32 whatever the dtype.
    Raises: ValueError unless the temperature is positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; log-probabilities need a positive one")
    bias_V = getattr(head, "bias", None)
    return _Logprobs.apply(hidden_ND, head.weight, bias_V, targets_N, shape, temperature, entropy)


def _logits(
    hidden_CD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    shape: HeadShape,
    temperature: float,
) -> tuple[Tensor, Tensor | float]:
    """(logits / temperature in float32, their derivative by the matrix product's output)."""
    logits_CV = F.linear(hidden_CD, weight_VD, bias_V).float()
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


def _chunks(hidden_ND: Tensor, weight_VD: Tensor) -> Iterator[slice]:
    """Slices of rows whose float32 logits fit CHUNK_BYTES."""
    rows = max(1, CHUNK_BYTES[hidden_ND.device.type] // (4 * len(weight_VD)))
    for start in range(0, len(hidden_ND), rows):
        yield slice(start, start + rows)


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    """Running sum: float32 once there is more than one part."""
    return part if total is None else total.float().add_(part)
