"""Which rows a rank computes, and how they are cut into micro-batches.

All of it follows from the lengths alone, so every rank knows every rank's share without asking.
Shapes: N response tokens of these rows end to end.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rlhf_ray.data.batching import token_budget_batches
from rlhf_ray.data.ids import stable_hash
from rlhf_ray.learners.rollouts import Rollouts
from rlhf_ray.models.packing import PackedRows, response_rows


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass, on the device.

    Attributes:
        rows, index_N, targets_N: see `packing.response_rows`.
        token_index_N: int64 on the CPU, their places in the tokens of all rollouts.
    """

    rows: PackedRows
    index_N: Tensor
    targets_N: Tensor
    token_index_N: Tensor


def minibatches(n_rows: int, count: int, *, seed: int, step: int, epoch: int) -> list[list[int]]:
    """Rows of each optimizer step of one epoch: a permutation that (seed, step, epoch) decides.

    Sizes differ by one at most, where a reward dropped rows. Raises ValueError for fewer rows than
    steps.
    """
    if n_rows < count:
        raise ValueError(
            f"{n_rows} rollouts are left for {count} minibatches: the reward dropped too many; "
            f"see to it, or lower --ppo.minibatches"
        )
    generator = torch.Generator().manual_seed(stable_hash(seed, step, epoch, "minibatches"))
    order = torch.randperm(n_rows, generator=generator).tolist()
    edges = [n_rows * i // count for i in range(count + 1)]
    return [sorted(order[a:b]) for a, b in pairwise(edges)]


def shares(rows: Sequence[int], lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Rows of each rank, balanced by tokens: longest first, each to the rank with the least."""
    if ranks == 1:
        return [list(rows)]
    loads = [(0, rank) for rank in range(ranks)]
    result: list[list[int]] = [[] for _ in range(ranks)]
    for row in sorted(rows, key=lambda r: (-lengths[r], r)):
        load, rank = heapq.heappop(loads)
        result[rank].append(row)
        heapq.heappush(loads, (load + lengths[row], rank))
    return [sorted(share) for share in result]


def micro_batches(
    rollouts: Rollouts,
    rows: Sequence[int],
    *,
    rank: int,
    ranks: int,
    budget: int,
    packed: bool,
    device: torch.device,
) -> Iterator[MicroBatch]:
    """This rank's micro-batches of `rows`, as many as any rank has: empty ones fill up.

    packed: whether the model's passes hold no padding, so that the budget is of tokens alone.
    A collective waits for every rank, so each must make the same number of passes.
    """
    lengths = rollouts.input_lengths
    cuts = []
    for share in shares(rows, lengths, ranks):
        batches = token_budget_batches([lengths[row] for row in share], budget, packed=packed)
        cuts.append([[share[i] for i in batch] for batch in batches])
    mine = cuts[rank]
    for i in range(max(len(cut) for cut in cuts)):
        yield _micro_batch(rollouts, mine[i] if i < len(mine) else [], device)


def _micro_batch(rollouts: Rollouts, rows: Sequence[int], device: torch.device) -> MicroBatch:
    prompts = [rollouts.prompts[row] for row in rows]
    responses = [rollouts.responses[row] for row in rows]
    every_N = torch.arange(rollouts.tokens)
    tokens = [every_N[a:b] for a, b in (rollouts.starts_B1[row : row + 2] for row in rows)]
    token_index_N = torch.cat([every_N[:0], *tokens])
    return MicroBatch(*response_rows(prompts, responses, device), token_index_N)
