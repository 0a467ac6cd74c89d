"""Weights in this process's GPU memory, described so that another process on the GPU can map them.

The other end is `VLLMGenerator.load_ipc`. Not used by runs yet, and never run on a GPU.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor


def shared(named_tensors: Iterable[tuple[str, Tensor]]) -> tuple[dict[str, Any], list[Tensor]]:
    """What vLLM's weight transfer takes as an update, and the tensors it points at.

    The tensors must live until the other process has loaded them. ValueError for one that is not
    on a GPU.
    """
    update: dict[str, Any] = {"names": [], "dtype_names": [], "shapes": [], "ipc_handles": []}
    kept = []
    for name, tensor in named_tensors:
        if not tensor.is_cuda:
            raise ValueError(f"{name} lies on {tensor.device}: CUDA IPC shares GPU memory alone")
        kept.append(tensor.detach().contiguous())
        device = str(torch.cuda.get_device_properties(tensor.device).uuid)
        update["names"].append(name)
        update["dtype_names"].append(str(tensor.dtype).removeprefix("torch."))
        update["shapes"].append(list(tensor.shape))
        update["ipc_handles"].append({device: reduce_tensor(kept[-1])[1]})
    return update, kept
