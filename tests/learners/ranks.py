"""Run a function on several gloo ranks, each a process of its own."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from rlhf_ray.learners.group import Group, leave

CPU = torch.device("cpu")


def run_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """[function(group, *args) of each rank]; in this process for one rank."""
    if size == 1:
        return [function(Group(CPU), *args)]
    with tempfile.TemporaryDirectory() as directory:
        address = f"file://{directory}/meet"
        mp.spawn(_rank, (size, address, directory, function, args), nprocs=size)
        return [torch.load(Path(directory) / f"{rank}.pt") for rank in range(size)]


def _rank(
    rank: int, size: int, address: str, directory: str, function: Callable[..., Any], args: Any
) -> None:
    torch.set_num_threads(1)
    group = Group.join(rank=rank, size=size, address=address, device=CPU)
    torch.save(function(group, *args), Path(directory) / f"{rank}.pt")
    leave([group])
