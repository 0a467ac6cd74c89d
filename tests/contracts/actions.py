"""What the tests have a generator do, in its own process."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from rlhf_ray.data.ids import Version
from rlhf_ray.generators.protocol import Completion, Generator, Request
from tests.contracts.models import PUBLISHED

Completions = dict[int, Completion]


def drain(engine: Generator, into: Completions | None = None) -> Completions:
    """Step until nothing is left; completions by rollout id, each of which comes once."""
    done = {} if into is None else into
    while engine.has_work():
        for completion in engine.step():
            assert completion.rollout_id not in done
            done[completion.rollout_id] = completion
    return done


def generate(engine: Generator, requests: Sequence[Request]) -> Completions:
    engine.submit(requests)
    return drain(engine)


def generate_staggered(engine: Generator, batches: Sequence[Sequence[Request]]) -> Completions:
    """Submit one batch more after every three steps."""
    done: Completions = {}
    for requests in batches:
        engine.submit(requests)
        for _ in range(3):
            done.update((c.rollout_id, c) for c in engine.step())
    return drain(engine, done)


def generate_and_abort(
    engine: Generator, requests: Sequence[Request], steps: int, aborted: Sequence[int]
) -> Completions:
    engine.submit(requests)
    done: Completions = {}
    for _ in range(steps):
        done.update((c.rollout_id, c) for c in engine.step())
    engine.abort(aborted)
    return drain(engine, done)


def generate_across_a_load(
    engine: Generator, requests: Sequence[Request], steps: int, version: Version, path: str
) -> Completions:
    engine.submit(requests)
    done: Completions = {}
    for _ in range(steps):
        done.update((c.rollout_id, c) for c in engine.step())
    engine.load(version, published(path).items())
    return drain(engine, done)


def published(path: str) -> dict[str, torch.Tensor]:
    return torch.load(Path(path) / PUBLISHED)


def load(
    engine: Generator,
    version: Version,
    path: str,
    without: str | None = None,
    extra: dict[str, tuple[int, ...]] | None = None,
) -> None:
    """Load the weights at `path`, less `without`, with `extra` tensors of these shapes."""
    tensors = published(path)
    tensors.update((name, torch.zeros(shape)) for name, shape in (extra or {}).items())
    engine.load(version, [(name, t) for name, t in tensors.items() if name != without])


def load_under_both_names(engine: Generator, version: Version, path: str, head_of: str) -> None:
    tensors = published(path)
    engine.load(version, {**tensors, "lm_head.weight": tensors[head_of]}.items())


def load_that_breaks_off(engine: Generator, version: Version, path: str) -> None:
    """The tensors' source raises half-way."""

    def half() -> Iterator[tuple[str, torch.Tensor]]:
        tensors = published(path)
        yield from list(tensors.items())[: len(tensors) // 2]
        raise ConnectionError("the other half is gone")

    engine.load(version, half())


def load_without_data(engine: Generator, version: Version, path: str) -> None:
    """Names and shapes are right, so only the copy itself fails."""
    tensors = published(path)
    engine.load(version, [(name, t.to("meta")) for name, t in tensors.items()])


def token_logprobs(engine: Generator, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return engine.token_logprobs(sequences)


def load_and_score_in_flight(
    engine: Generator,
    requests: Sequence[Request],
    version: Version,
    path: str,
    sequences: Sequence[Sequence[int]],
) -> tuple[list[np.ndarray], Completions]:
    engine.submit(requests)
    done = {c.rollout_id: c for _ in range(3) for c in engine.step()}
    engine.load(version, published(path).items())
    return engine.token_logprobs(sequences), drain(engine, done)


def has_work(engine: Generator) -> bool:
    return engine.has_work()


def threads(engine: Generator) -> int:
    return torch.get_num_threads()
