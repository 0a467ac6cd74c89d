"""Causal attention within rows that lie end to end.

Rows of like length are padded to one length, here alone, and attended as a batch. Two matrix
products are faster than SDPA for short bfloat16 rows on a CPU: forward and backward of 64 rows × 64
tokens, 4 heads of 64, on 2 cores: 6 ms here, 23 ms in SDPA's kernel; 16 × 256: 14 ms and 29 ms; at
1,024 tokens SDPA wins. Longer rows, float32, dropout or a GPU go to SDPA.

Shapes: N tokens of all rows; H heads share G ≤ H keys and values of D features. In a block: n
tokens of B rows, L the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf_ray.models.indexing import take

NAME = "rlhf_ray_packed"
LONGEST = 512  # of what two matrix products attend
BLOCK_COST = 32_768  # of a block's calls, in attention weights of one head
WIDEST_FLASH_HEAD = 256

# cuDNN's kernels, which SDPA prefers on an H100, are planned anew for each shape, tens of
# milliseconds, and the plans are never given back. Here nearly every batch has new shapes.
torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass(frozen=True)
class Block:
    """Neighbouring rows that are padded to one length.

    Attributes:
        tokens: which of the N tokens are theirs.
        rows, longest: B and L.
        places_n: int64, each token's place in B·L; None where every row is as long.
    """

    tokens: slice
    rows: int
    longest: int
    places_n: Tensor | None


def blocks_of(
    lengths: Sequence[int], device: torch.device, *, multiple_of: int = 1
) -> tuple[Block, ...]:
    """Neighbouring rows in blocks whose padding costs less than what it saves in calls.

    Cost of a block: rows · longest². It is at most twice that of its rows alone, and BLOCK_COST;
    then its length is rounded up.
    """
    blocks: list[list[int]] = []
    longest, alone = 0, 0
    for length in lengths:
        longest, alone = max(longest, length), alone + length**2
        if not blocks or (len(blocks[-1]) + 1) * longest**2 > 2 * alone + BLOCK_COST:
            blocks.append([])
            longest, alone = length, length**2
        blocks[-1].append(length)
    ends = np.cumsum([sum(rows) for rows in blocks]).tolist()
    return tuple(
        _block(rows, end, -(-max(rows) // multiple_of) * multiple_of, device)
        for rows, end in zip(blocks, ends, strict=True)
    )


def _block(lengths: list[int], end: int, longest: int, device: torch.device) -> Block:
    tokens = sum(lengths)
    places_n = None
    if tokens < len(lengths) * longest:
        places = [np.arange(length) + i * longest for i, length in enumerate(lengths)]
        places_n = torch.from_numpy(np.concatenate(places)).to(device)
    return Block(slice(end - tokens, end), len(lengths), longest, places_n)


def use_packed_attention(model: Any) -> bool:
    """Let each layer of `model` use `packed_attention`; False for models that bring their own."""
    replaceable = getattr(model, "_supports_attention_backend", False)
    if not replaceable or model.config._attn_implementation != "sdpa":
        return False
    model.set_attn_implementation(NAME)
    return True


def packed_attention(
    module: nn.Module,
    query_1HND: Tensor,
    key_1GND: Tensor,
    value_1GND: Tensor,
    attention_mask: Tensor | None,
    *,
    blocks: tuple[Block, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q·kᵀ·scaling + causal mask)·v within each row -> [1, N, H, D]; zeros after the last.

    transformers' calling convention. Without `blocks`, rows are a batch as usual: SDPA.
    """
    if blocks is None:
        return sdpa_attention_forward(
            module, query_1HND, key_1GND, value_1GND, attention_mask, **kwargs
        )
    parts = []
    for block in blocks:
        query, key, value = (
            _pad(x[0, :, block.tokens], block) for x in (query_1HND, key_1GND, value_1GND)
        )
        parts.append(_unpad(_attend(query, key, value, kwargs), block))
    _, H, N, D = query_1HND.shape
    if (end := blocks[-1].tokens.stop) < N:
        parts.append(query_1HND.new_zeros(H, N - end, D))
    out_HND = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return out_HND.transpose(0, 1)[None], None


def _pad(x_HnD: Tensor, block: Block) -> Tensor:
    """[H, B, L, D], zeros where a row has ended."""
    H, _, D = x_HnD.shape
    if block.places_n is not None:
        padded = x_HnD.new_zeros(H, block.rows * block.longest, D)
        x_HnD = padded.index_copy(1, block.places_n, x_HnD)
    return x_HnD.reshape(H, block.rows, block.longest, D)


def _unpad(x_HBLD: Tensor, block: Block) -> Tensor:
    """[H, n, D]."""
    x_HnD = x_HBLD.flatten(1, 2)
    return x_HnD if block.places_n is None else take(x_HnD, block.places_n, 1)


def _attend(query_HBLD: Tensor, key_GBLD: Tensor, value_GBLD: Tensor, kwargs: Any) -> Tensor:
    """[H, B, L, D]. A position sees itself and those before it, in the model's window."""
    H, B, L, D = query_HBLD.shape
    scaling, dropout = kwargs.get("scaling") or D**-0.5, kwargs.get("dropout") or 0.0
    window = kwargs.get("sliding_window") or L
    repeats = H // len(key_GBLD)
    grouped = repeats > 1 and window >= L and _takes_groups(query_HBLD)
    key, value = key_GBLD, value_GBLD
    if repeats > 1 and not grouped:
        key, value = (x.repeat_interleave(repeats, dim=0) for x in (key, value))
    short = query_HBLD.dtype == torch.bfloat16 and query_HBLD.device.type == "cpu" and L <= LONGEST
    if short and not dropout:
        hidden_LL = _hidden(L, window, query_HBLD.device)
        bias_LL = query_HBLD.new_zeros(L, L).masked_fill_(hidden_LL, float("-inf"))
        scores = torch.baddbmm(
            bias_LL,
            (query_HBLD * scaling).flatten(0, 1),
            key.flatten(0, 1).transpose(1, 2),
        )
        weights = torch.softmax(scores, dim=-1)
        return torch.bmm(weights, value.flatten(0, 1)).view(H, B, L, D)
    seen_LL = None if window >= L else ~_hidden(L, window, query_HBLD.device)
    out_BHLD = F.scaled_dot_product_attention(
        query_HBLD.transpose(0, 1),
        key.transpose(0, 1),
        value.transpose(0, 1),
        attn_mask=seen_LL,
        is_causal=seen_LL is None,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=grouped,
    )
    return out_BHLD.transpose(0, 1)


def _takes_groups(like: Tensor) -> bool:
    """Whether SDPA has a kernel, without a mask, that takes G keys for H queries as they are.

    The memory-efficient one, for float32 and for masks, does not: with groups SDPA would then
    choose the one that holds all attention weights.
    """
    narrow = like.shape[-1] <= WIDEST_FLASH_HEAD
    return like.device.type == "cuda" and like.dtype == torch.bfloat16 and narrow


def _hidden(length: int, window: int, device: torch.device) -> Tensor:
    """bool [L, L]: what a position does not see."""
    every_LL = torch.ones(length, length, dtype=torch.bool, device=device)
    return every_LL.triu(1) | every_LL.tril(-window)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
