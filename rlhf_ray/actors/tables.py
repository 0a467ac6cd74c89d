"""Fetching rollouts inside an actor: references in, one joined table out."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import ObjectLostError

from rlhf_ray.data import schemas


def fetch(shards: Sequence[tuple[ray.ObjectRef, ...]]) -> pa.Table:
    """The shards' rows joined with their scorers' columns, sorted by rollout id.

    shards: (rollouts, new columns, …) references of each shard. Rows that a reward dropped
    (`score_valid` 0) are left out. Raises ObjectLostError where a table is gone; how long one that
    is not may take is the caller's to limit.
    """
    flat = [ref for shard in shards for ref in shard]
    tables = iter(ray.get(flat))
    joined = [schemas.join(*(next(tables) for _ in shard)) for shard in shards]
    table = pa.concat_tables(joined).combine_chunks().sort_by("rollout_id")
    if "score_valid" in table.column_names:
        table = table.filter(pc.equal(table.column("score_valid"), 1))
    return table


def without_singles(rollouts: pa.Table) -> pa.Table:
    """Without rows that are the only ones left of their prompt: there is nothing to compare."""
    _, group, sizes = np.unique(
        rollouts.column("prompt_id").to_numpy(), return_inverse=True, return_counts=True
    )
    return rollouts.filter(pa.array(sizes[group] > 1))


def gone(shards: Sequence[tuple[ray.ObjectRef, ...]]) -> list[int]:
    """The places in `shards` of those of which a table cannot be had any more."""
    lost = []
    for index, shard in enumerate(shards):
        try:
            ray.get(list(shard))
        except ObjectLostError:
            lost.append(index)
    return lost
