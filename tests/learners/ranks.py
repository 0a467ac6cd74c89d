"""Ranks (gloo, or NCCL on GPUs), each a process of its own, that run functions together.

Started once a session.
"""

import os
import queue
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp
from torch.distributed import FileStore

from rlhf_ray.learners.group import Group, leave, this_device

CPU = torch.device("cpu")
DEADLINE = 120.0  # seconds for any one function


class Ranks:
    """`run(function, *args)` calls function(group, *args) on every rank at once."""

    def __init__(self, size: int, directory: str, *, device: str = "cpu") -> None:
        context = mp.get_context("spawn")
        self._calls = [context.Queue() for _ in range(size)]
        self._results = context.Queue()
        self._processes = [
            context.Process(
                target=_serve,
                args=(
                    *(rank, size, f"{directory}/meet", device),
                    *(self._calls[rank], self._results),
                ),
                daemon=True,
            )
            for rank in range(size)
        ]
        for process in self._processes:
            process.start()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What it returned, by rank. Raises what a rank raised, as text."""
        for calls in self._calls:
            calls.put((function, args))
        results: dict[int, Any] = {}
        while len(results) < len(self._calls):
            try:
                rank, result, fault = self._results.get(timeout=DEADLINE)
            except queue.Empty as error:
                waiting = set(range(len(self._calls))) - set(results)
                raise TimeoutError(f"{function.__name__}: no answer of ranks {waiting}") from error
            results[rank] = RuntimeError(fault) if fault else result
        for result in results.values():
            if isinstance(result, RuntimeError):
                raise result
        return [results[rank] for rank in range(len(self._calls))]

    def close(self) -> None:
        """End the processes."""
        for calls in self._calls:
            calls.put(None)
        for process in self._processes:
            process.join(10)


def _show_one_gpu(rank: int) -> None:
    """As Ray does to the process of a rank."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = shown.split(",")[rank] if shown else str(rank)


def _serve(rank: int, size: int, meeting: str, device: str, calls: Any, results: Any) -> None:
    torch.set_num_threads(1)
    if device == "cuda":
        _show_one_gpu(rank)
    mine = CPU if device == "cpu" else this_device()
    store = FileStore(meeting, size)
    group = Group.join(store, rank=rank, size=size, device=mine)
    while (call := calls.get()) is not None:
        function, args = call
        try:
            results.put((rank, function(group, *args), None))
        except (ValueError, ArithmeticError, RuntimeError, AssertionError):
            results.put((rank, None, traceback.format_exc()))
    leave([group])
