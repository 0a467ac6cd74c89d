"""Prints how far this process's memory rises over the language head's forward and backward pass."""

import sys
from collections.abc import Callable

import torch

from rlhf_ray.models.logprobs import HeadShape, response_logprobs
from tests.memory import peak_bytes


def make_pass(tokens: int, vocab: int) -> Callable[[], object]:
    """Both passes over so many tokens, to be called."""
    hidden_ND = torch.randn(tokens, 16, requires_grad=True)
    head = torch.nn.Linear(16, vocab, bias=False)
    targets_N = torch.arange(tokens)

    def both() -> None:
        logprobs_N, _ = response_logprobs(
            hidden_ND, head, targets_N, shape=HeadShape(), entropy=True
        )
        logprobs_N.sum().backward()

    return both


if __name__ == "__main__":
    tokens, vocab = map(int, sys.argv[1:])
    make_pass(1, vocab)()  # libraries' own buffers
    print(peak_bytes(make_pass(tokens, vocab)))
