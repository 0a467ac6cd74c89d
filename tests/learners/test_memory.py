"""A whole update's peak memory does not grow with the vocabulary times the tokens."""

import os
import subprocess
import sys

from tests.running.jobs import ROOT


def update_memory(vocab: int, *tokens: int) -> list[int]:
    """Bytes that `update_memory` measures, in a process that freed blocks leave at once."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.learners.update_memory", *map(str, (vocab, *tokens))],
        cwd=ROOT,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    return [int(line) for line in done.stdout.split()]


def test_an_updates_memory_does_not_grow_with_vocabulary_times_tokens() -> None:
    few, many, vocab = 128, 384, 150_000
    small, large = update_memory(vocab, few, many)
    assert large - small < 0.1 * (many - few) * vocab * 4, (small, large)
