"""An update by CUDA IPC, checked against the model before anything of it is loaded."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from rlhf_ray.generators.state import StateLayout

COLUMNS = ("dtype_names", "shapes", "ipc_handles")


def checked(
    update: Mapping[str, Any], layout: StateLayout, *, without: Collection[str] = ()
) -> dict[str, Any]:
    """`update` (see `weights.cuda_ipc.shared`) with all tensors of `layout` but those `without`.

    Tied ones have a row under each of their names. ValueError as `StateLayout.complete` raises.
    """
    stand_ins = [torch.empty(tuple(shape), device="meta") for shape in update["shapes"]]
    row_of = {id(tensor): row for row, tensor in enumerate(stand_ins)}
    state = layout.complete(zip(update["names"], stand_ins, strict=True))
    rows = {name: row_of[id(x)] for name, x in state.items() if name not in without}
    columns = {column: [update[column][row] for row in rows.values()] for column in COLUMNS}
    return {"names": list(rows), **columns}
