"""The ranks of a learner group: who I am, and sums over all."""

import ctypes
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rlhf_ray.models.device import device_here

# Of a rank with the others, as while rank 0 writes a file. The driver's deadlines come first.
PATIENCE = timedelta(days=1)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Group:
    """N ranks that learn together; with one rank nothing is communicated.

    Attributes:
        mesh: the ranks as FSDP2 sees them; None for one rank.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    @classmethod
    def join(cls, store: dist.Store, *, rank: int, size: int, device: torch.device) -> "Group":
        """Meet the other ranks by way of `store`; gloo on CPUs, NCCL on GPUs.

        device: a GPU has an index (`this_device`).
        """
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
        return cls(device, rank, size, init_device_mesh(device.type, (size,)))

    def sum(self, x: Tensor) -> Tensor:
        """Σ over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def max(self, x: Tensor) -> Tensor:
        """Maximum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x, op=dist.ReduceOp.MAX)
        return x

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()


def this_device() -> torch.device:
    """`device_here`, a GPU by its index: Ray shows each rank its own alone."""
    return torch.device("cuda", 0) if device_here() == "cuda" else torch.device("cpu")


def set_up_torch(
    *, threads: int | None = None, deterministic: bool = True, strict: bool = False
) -> None:
    """Threads, and algorithms that give the same bits each time. Once a process, before the models.

    Memory is not filled before use: that is a search for bugs, and costs a fifth of a CPU's step.

    strict: raise where an operation has no such algorithm. On a GPU the backward pass of SDPA for
        float32 gives the same bits in this mode alone, and products need a workspace of one size.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    _keep_freed_memory()
    torch.set_flush_denormal(True)
    if strict:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=not strict)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _keep_freed_memory() -> None:
    """Let glibc reuse what tensors freed: returning it costs a page fault for every 4 KiB again.

    Measured: 340,000 faults and a twentieth of the time of one update of a 3.7 M policy.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def leave(groups: Sequence[Group]) -> None:
    """End the process group, if one was joined."""
    if any(group.size > 1 for group in groups) and dist.is_initialized():
        dist.destroy_process_group()
