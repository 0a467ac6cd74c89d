"""Rows of tokens end to end, and a forward pass over them in which no position is padding.

A transformer's layers see one position at a time, except attention, which keeps rows apart
(`attention`). Models whose attention cannot be told to are given padded rows.

Shapes: B rows, L positions of the longest, N tokens of all rows, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf_ray.data.batching import pad_flat
from rlhf_ray.models.attention import NAME, blocks_of, use_packed_attention
from rlhf_ray.models.indexing import take
from rlhf_ray.models.loading import is_causal
from rlhf_ray.models.shapes import LENGTH, TOKENS, compiles_each


@dataclass(frozen=True)
class PackedRows:
    """B token rows end to end. Attention costs least where the shorter rows come first.

    Attributes:
        ids_N: int64.
        lengths: of each row, at least 1; on the host, because they decide shapes.
    """

    ids_N: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], device: torch.device | str = "cpu") -> "PackedRows":
        """These rows, in their order."""
        ids_N = torch.from_numpy(np.concatenate(rows).astype(np.int64))
        return cls(ids_N.to(device), tuple(map(len, rows)))

    @classmethod
    def of_padded(cls, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> "PackedRows":
        """Rows padded on either side, without their padding.

        attention_mask_BL is not 0 where a token counts. Raises ValueError for a row without one.
        """
        assert input_ids_BL.ndim == 2 and input_ids_BL.shape == attention_mask_BL.shape
        mask_BL = attention_mask_BL != 0
        lengths = tuple(mask_BL.sum(1).tolist())
        if 0 in lengths:
            row = lengths.index(0)
            raise ValueError(f"row {row} has no attended token, so nothing to score: leave it out")
        return cls(input_ids_BL[mask_BL], lengths)

    @property
    def starts(self) -> np.ndarray:
        """int64 [B + 1]: where each row begins, and N."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def apart(self) -> tuple[Tensor, ...]:
        """The ids of each row."""
        return self.ids_N.split(self.lengths)

    def padded(self, pad_id: int = 0) -> tuple[Tensor, Tensor]:
        """(input_ids_BL, mask_BL bool), padded on the right."""
        ids_BL, mask_BL = pad_flat(self.ids_N.cpu().numpy(), np.array(self.lengths), pad_id)
        return ids_BL.to(self.ids_N.device), mask_BL.to(self.ids_N.device)


def response_rows(
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    device: torch.device | str = "cpu",
) -> tuple[PackedRows, Tensor, Tensor]:
    """(rows of prompt + response without its last token, index_N, targets_N) for a forward pass.

    index_N: int64, the positions in the rows that predict targets_N, the response tokens end to
    end: the last ones of each row. Without a response the rows are one token that predicts nothing.
    """
    inputs = [np.concatenate([p, r[:-1]]) for p, r in zip(prompts, responses, strict=True)]
    rows = PackedRows.of(inputs or [np.zeros(1)], device)
    ends = rows.starts[1 : len(responses) + 1]
    index = [np.arange(end - len(r), end) for end, r in zip(ends, responses, strict=True)]
    none = np.empty(0, np.int64)
    index_N, targets_N = (
        torch.from_numpy(np.concatenate([none, *parts])).to(device) for parts in (index, responses)
    )
    return rows, index_N, targets_N


def use_packing(model: Any) -> None:
    """Let `hidden_states` run `model` over rows end to end, where that gives what padding gives.

    Found by trying: two short rows, once packed and once padded. Saved configs do not show it.
    """
    before = model.config._attn_implementation
    if not use_packed_attention(model):
        return
    device = next(model.parameters()).device
    vocab = model.get_input_embeddings().weight.shape[0]
    rows = PackedRows((torch.arange(8, device=device) * 7 + 3) % vocab, (3, 5))
    training = model.training
    with torch.no_grad():
        trunk = model.eval().base_model
        packed_ND, padded_ND = _packed(trunk, rows), _padded(trunk, rows)
    model.train(training)
    rounding = max(1e-3, 16 * torch.finfo(padded_ND.dtype).eps)
    if not torch.allclose(packed_ND, padded_ND, rtol=rounding, atol=rounding):
        model.set_attn_implementation(before)


def packs(backbone: Any) -> bool:
    """Whether this model runs over rows end to end: its passes then hold no padding."""
    return bool(backbone.config._attn_implementation == NAME)


def hidden_states(backbone: Any, rows: PackedRows) -> Tensor:
    """hidden_ND after the last norm, in the order of `rows`; one forward pass."""
    return _packed(backbone, rows) if packs(backbone) else _padded(backbone, rows)


def _packed(backbone: Any, rows: PackedRows) -> Tensor:
    device, tokens = rows.ids_N.device, len(rows.ids_N)
    # Where all rows have one length, passes have few shapes as they are.
    alike = len(rows.lengths) > 1 and len(set(rows.lengths)) == 1
    rounded = compiles_each(next(backbone.parameters())) and not alike
    more = -tokens % TOKENS if rounded else 0
    # Filler tokens all get position 0: counted on, they could exceed the model's positions.
    positions = [*map(np.arange, rows.lengths), np.zeros(more, np.int64)]
    out = backbone(
        input_ids=F.pad(rows.ids_N, (0, more))[None],
        position_ids=torch.from_numpy(np.concatenate(positions))[None].to(device),
        # A 4-D mask keeps transformers from building an N×N one; `blocks` does the masking.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        use_cache=False,
        blocks=blocks_of(rows.lengths, device, multiple_of=LENGTH if rounded else 1),
    )
    return out.last_hidden_state[0, :tokens]


def _padded(backbone: Any, rows: PackedRows) -> Tensor:
    input_ids_BL, mask_BL = rows.padded()
    if is_causal(backbone.config):  # no position sees what pads on its right
        out = backbone(input_ids=input_ids_BL, use_cache=False)
    else:
        mask = None if bool(mask_BL.all()) else mask_BL.long()
        out = backbone(input_ids=input_ids_BL, attention_mask=mask)
    return take(out.last_hidden_state.flatten(0, 1), mask_BL.flatten().nonzero()[:, 0])
