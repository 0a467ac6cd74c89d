"""Prints how far this process's memory rises over the language head's forward and backward pass.

Run by itself: in a process that has done other work, freed memory that malloc kept hides a part.
"""

import sys
from pathlib import Path

import torch

from rlhf_ray.models.logprobs import HeadShape, response_logprobs


def peak_bytes(tokens: int, vocab: int) -> int:
    """Resident memory at its highest, less what was there before the pass."""
    hidden_ND = torch.randn(tokens, 16, requires_grad=True)
    head = torch.nn.Linear(16, vocab, bias=False)
    targets_N = torch.arange(tokens)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _resident("VmRSS")
    logprobs_N, _ = response_logprobs(hidden_ND, head, targets_N, shape=HeadShape(), entropy=True)
    logprobs_N.sum().backward()
    return _resident("VmHWM") - before


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    tokens, vocab = map(int, sys.argv[1:])
    peak_bytes(1, vocab)  # libraries' own buffers
    print(peak_bytes(tokens, vocab))
