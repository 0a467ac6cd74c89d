"""Weights by way of one GPU's memory, where learner and generators share it.

What goes through the object store is a description that lets another process on the GPU map the
tensors; vLLM's weight transfer loads them, once their names and shapes are the model's. What is in
them is checked by probes alone. Never run on a GPU so far: tests/gpu says what it is to do.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from rlhf_ray.data.ids import Version
from rlhf_ray.weights.buckets import Manifest, Offer, Probe
from rlhf_ray.weights.object_store import fetch


def offer(
    version: Version,
    named_tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: str,
    bucket_bytes: int,
    probes: Sequence[Probe] = (),
) -> Offer:
    """The version as one object, a description; its tensors live as long as the offer.

    bucket_bytes: as of every way, and of no use here.
    """
    update, kept = shared(named_tensors)
    nbytes = sum(tensor.nbytes for tensor in kept)
    manifest = Manifest(version, dtype, (), (nbytes,), (), tuple(probes))
    return Offer(manifest, (update,), kept)


def take(manifest: Manifest, refs: Sequence[Any], *, timeout: float) -> Callable[[Any], None]:
    """A function that loads the version into an engine made with `takes_ipc`."""
    (update,) = fetch(manifest, refs, timeout=timeout)
    return lambda engine: engine.load_ipc(manifest.version, update)


def shared(named_tensors: Iterable[tuple[str, Tensor]]) -> tuple[dict[str, Any], list[Tensor]]:
    """What vLLM's weight transfer takes as an update, and the tensors it points at.

    They are copies, and must live until the other process has loaded them. ValueError for one that
    is not on a GPU.
    """
    update: dict[str, Any] = {"names": [], "dtype_names": [], "shapes": [], "ipc_handles": []}
    kept: list[Tensor] = []
    previous: Tensor | None = None
    for name, tensor in named_tensors:
        if not tensor.is_cuda:
            raise ValueError(f"{name} lies on {tensor.device}: CUDA IPC shares GPU memory alone")
        if tensor is not previous:  # a tied one comes again under its other name
            kept.append(tensor.detach().clone(memory_format=torch.contiguous_format))
            handle = reduce_tensor(kept[-1])[1]  # one a tensor: each is waited for to be opened
        previous = tensor
        device = str(torch.cuda.get_device_properties(tensor.device).uuid)
        update["names"].append(name)
        update["dtype_names"].append(str(tensor.dtype).removeprefix("torch."))
        update["shapes"].append(list(tensor.shape))
        update["ipc_handles"].append({device: handle})
    return update, kept
