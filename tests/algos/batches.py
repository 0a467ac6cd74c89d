"""Random batches for the tests of `algos`: ragged, with holes, padded on both sides.

Shapes: B responses, T response positions (padded).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

JUNK = (float("nan"), float("inf"), -float("inf"), 1e30, -700.0)


@dataclass(frozen=True)
class Batch:
    """Three per-token tensors near 0, as log-probabilities and values are, and a score a row."""

    a_BT: Tensor
    b_BT: Tensor
    c_BT: Tensor
    scores_B: Tensor
    mask_BT: Tensor

    def map_tokens(self, fn) -> Batch:
        return replace(
            self,
            a_BT=fn(self.a_BT),
            b_BT=fn(self.b_BT),
            c_BT=fn(self.c_BT),
            mask_BT=fn(self.mask_BT),
        )

    def rows(self, index) -> Batch:
        return replace(self.map_tokens(lambda x: x[index]), scores_B=self.scores_B[index])

    def cast(self, dtype: torch.dtype) -> Batch:
        return replace(
            self.map_tokens(lambda x: x if x.dtype == torch.bool else x.to(dtype)),
            scores_B=self.scores_B.to(dtype),
        )

    @property
    def inputs(self) -> list[Tensor]:
        return [self.a_BT, self.b_BT, self.c_BT, self.scores_B]

    def tracked(self) -> Batch:
        """A copy whose floating point tensors are leaves that want gradients."""
        a, b, c, s = (x.detach().clone().requires_grad_() for x in self.inputs)
        return Batch(a, b, c, s, self.mask_BT)


def random_batch(seed: int, *, rows: int | None = None, length: int | None = None) -> Batch:
    g = torch.Generator().manual_seed(seed)
    b = rows or int(torch.randint(1, 6, (), generator=g))
    t = length or int(torch.randint(1, 10, (), generator=g))
    keep = 0.2 + 0.8 * float(torch.rand((), generator=g))
    mask_BT = torch.rand(b, t, generator=g) < keep
    mask_BT[torch.arange(b), torch.randint(0, t, (b,), generator=g)] = True
    a_BT, b_BT, c_BT = torch.randn(3, b, t, generator=g, dtype=torch.float64) * 0.5
    return Batch(a_BT, b_BT, c_BT, torch.randn(b, generator=g, dtype=torch.float64), mask_BT)


def with_junk(batch: Batch, seed: int = 0) -> Batch:
    """The batch with NaN, inf and huge numbers in its masked positions."""
    g = torch.Generator().manual_seed(seed)

    def spoil(x: Tensor) -> Tensor:
        junk = torch.tensor(JUNK, dtype=x.dtype)[torch.randint(0, len(JUNK), x.shape, generator=g)]
        return torch.where(batch.mask_BT, x, junk)

    return batch.map_tokens(lambda x: x if x.dtype == torch.bool else spoil(x))


def padded(batch: Batch, left: int, right: int) -> Batch:
    """The batch with masked columns added on either side, full of NaN."""

    def pad(x: Tensor) -> Tensor:
        fill = False if x.dtype == torch.bool else float("nan")
        sides = [x.new_full((len(x), n), fill) for n in (left, right)]
        return torch.cat([sides[0], x, sides[1]], 1)

    return batch.map_tokens(pad)


def without_holes(batch: Batch) -> Batch:
    """The batch with each row's unmasked positions moved to its start, in order."""
    order_BT = (~batch.mask_BT).long().argsort(dim=1, stable=True)
    return batch.map_tokens(lambda x: x.gather(1, order_BT))
