"""Prints how far this process's memory rises over one update of a model with a large vocabulary.

Run by itself: in a process that has done other work, freed memory that malloc kept hides a part.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from rlhf_ray.config import PPO
from rlhf_ray.learners.ppo import PPOLearner
from rlhf_ray.models.actor_critic import Actor, value_head_for
from tests.learners.toys import table, tiny_lm

ROWS = 4


def make_update(tokens: int, vocab: int) -> Callable[[], object]:
    """One update from ROWS responses of `tokens` together, to be called as often as one likes."""
    actor = Actor(tiny_lm(vocab=vocab, layers=1))
    actor.value_head = value_head_for(actor.model)
    settings = PPO(prompts=ROWS, epochs=1, minibatches=1)
    learner = PPOLearner(actor, None, settings=settings, seed=0, temperature=1.0)
    responses = np.arange(tokens).reshape(ROWS, -1)
    rows = table(rows=ROWS, responses=list(responses), vocab=vocab)
    return lambda: learner.update(0, rows)


def peak_bytes(work: Callable[[], object]) -> int:
    """Resident memory at its highest, less what was there before."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    vocab, *sizes = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    make_update(ROWS, vocab)()  # libraries' own buffers
    for tokens in sizes:
        update = make_update(tokens, vocab)
        update()  # the optimizer's moments
        print(peak_bytes(update))
