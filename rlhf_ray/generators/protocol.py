"""What writes a response. One thread owns an engine and steps it; nothing here blocks for long."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from rlhf_ray.data.ids import Version


@dataclass(frozen=True, slots=True)
class Sampling:
    """How every response of a run is sampled: softmax(logits / temperature), no top-k, no top-p.

    eos_token_ids: any of them ends a response.
    """

    temperature: float
    max_tokens: int
    eos_token_ids: tuple[int, ...]
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One response to write. `seed` (63 bits) alone decides its randomness."""

    rollout_id: int
    prompt_token_ids: Sequence[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One response, with its EOS where it has one.

    response_token_ids int32 [n]; behaviour_logprobs float32 [n], of the distribution sampled from;
    finish_reason "eos" or "length"; version_spans: flat (first position, incarnation, step).
    """

    rollout_id: int
    response_token_ids: np.ndarray
    behaviour_logprobs: np.ndarray
    finish_reason: str
    version_spans: tuple[int, ...]


class EngineDead(RuntimeError):
    """The engine's weights are undefined, as after half a load: its process is to end."""


class Generator(Protocol):
    """An engine. Requests batch continuously: submit at any time between steps."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue `requests`. ValueError for a prompt that leaves no room for a response."""

    def step(self) -> list[Completion]:
        """Advance all requests in flight by about one token each; return those that finished."""

    def has_work(self) -> bool:
        """Whether any request is queued or in flight."""

    def abort(self, rollout_ids: Sequence[int]) -> None:
        """Forget these requests; unknown ids are ignored."""

    def load(self, version: Version, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights between two steps. Requests in flight go on under the new ones.

        ValueError for tensors that are not this model's: nothing is changed then. Any other
        exception leaves the engine unusable: the caller must end the process.
        """

    def token_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """float32 [n − 1] per sequence: log-prob of each token after the first, at temperature 1.

        Never from a cache of older weights. Requests in flight may advance meanwhile.
        """

    def sleep(self) -> None:
        """Give the device's memory up until the next load or request, where the engine can.

        Only while no request is in flight.
        """

    def close(self) -> None:
        """Free the engine and any process it started."""
