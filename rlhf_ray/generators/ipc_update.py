"""An update by CUDA IPC, checked against the model before anything of it is loaded."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from rlhf_ray.generators.checkpoint_names import CheckpointNames
from rlhf_ray.generators.state import StateLayout

COLUMNS = ("dtype_names", "shapes", "ipc_handles")


def checked(
    update: Mapping[str, Any],
    layout: StateLayout,
    names: CheckpointNames,
    *,
    without: Collection[str] = (),
) -> dict[str, Any]:
    """`update` (see `weights.cuda_ipc.shared`) with all tensors of `layout` but those `without`.

    Tied ones have a row under each of their names. ValueError as `StateLayout.complete` raises, and
    for a tensor that a checkpoint holds in parts: memory that is mapped is not cut.
    """
    stand_ins = [torch.empty(tuple(shape), device="meta") for shape in update["shapes"]]
    row_of = {id(tensor): row for row, tensor in enumerate(stand_ins)}
    state = layout.complete(zip(update["names"], stand_ins, strict=True))
    rows: dict[str, int] = {}
    for name, x in state.items():
        found = list(names.of([(name, x)]))
        if [part.shape for _, part in found] != [x.shape]:
            raise ValueError(
                f"{name} is {len(found)} tensors of a checkpoint, which CUDA IPC cannot give "
                f"away apart: leave cluster.weights_by cuda_ipc out"
            )
        rows[found[0][0]] = row_of[id(x)]
    rows = {name: row for name, row in rows.items() if name not in without}
    columns = {column: [update[column][row] for row in rows.values()] for column in COLUMNS}
    return {"names": list(rows), **columns}
