"""Causal attention as two matrix products: faster than SDPA for short bfloat16 rows on a CPU.

Forward and backward of 64 rows × 64 tokens, 4 heads of 64, on 2 cores: 6 ms here, 23 ms in SDPA's
kernel; 16 × 256: 14 ms and 29 ms; at 1,024 tokens SDPA wins. Long rows, float32, a mask or a GPU
go to SDPA.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "rlhf_ray_short"
LONGEST = 512


def use_short_attention(model: PreTrainedModel) -> None:
    """Let each layer of `model` use `short_attention`; models that bring their own (BLOOM) keep it.

    Saved configs do not name it: a model saved afterwards loads anywhere.
    """
    replaceable = getattr(model, "_supports_attention_backend", False)
    if replaceable and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def short_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTD: Tensor,
    attention_mask: Tensor | None,
    **kwargs,
) -> tuple[Tensor, None]:
    """softmax(q·kᵀ·scaling + causal mask)·v -> [B, T, H, D], with transformers' calling convention.

    H heads share G ≤ H keys and values. Softmax accumulates in float32.
    """
    if not _suits(module, query_BHTD, key_BGTD, attention_mask, kwargs):
        return sdpa_attention_forward(
            module, query_BHTD, key_BGTD, value_BGTD, attention_mask, **kwargs
        )
    B, H, T, D = query_BHTD.shape
    repeats = H // key_BGTD.shape[1]
    if repeats > 1:
        key_BGTD = key_BGTD.repeat_interleave(repeats, dim=1)
        value_BGTD = value_BGTD.repeat_interleave(repeats, dim=1)
    scaling = kwargs.get("scaling") or D**-0.5
    later_TT = torch.full((T, T), float("-inf"), dtype=query_BHTD.dtype).triu(1)
    scores_NTT = torch.baddbmm(
        later_TT,
        (query_BHTD * scaling).reshape(B * H, T, D),
        key_BGTD.reshape(B * H, T, D).transpose(1, 2),
    )
    out_NTD = torch.bmm(torch.softmax(scores_NTT, dim=-1), value_BGTD.reshape(B * H, T, D))
    return out_NTD.view(B, H, T, D).transpose(1, 2), None


def _suits(
    module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, kwargs: dict
) -> bool:
    causal = kwargs.get("is_causal")
    return (
        attention_mask is None
        and (getattr(module, "is_causal", True) if causal is None else causal)
        and not kwargs.get("dropout")
        and kwargs.get("position_bias") is None
        and query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.shape[2] == key.shape[2] <= LONGEST
    )


AttentionInterface.register(NAME, short_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
