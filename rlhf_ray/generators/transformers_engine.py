"""Generation with plain transformers: slow and simple, the oracle, and the fallback without vLLM.

Shapes: B rows of a wave, P padded prompt length, L positions so far, V vocabulary.
"""

import inspect
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache

from rlhf_ray.data.ids import Version
from rlhf_ray.generators.flight import Flight, check_room
from rlhf_ray.generators.protocol import Completion, EngineDead, Request, Sampling
from rlhf_ray.generators.state import state_layout, without_weights
from rlhf_ray.models.device import device_here
from rlhf_ray.models.loading import load_causal_lm


class TransformersGenerator:
    """A Generator (see protocol.py): requests that start together are one left-padded wave."""

    def __init__(
        self,
        model_path: str,
        *,
        sampling: Sampling,
        version: Version,
        dtype: str = "float32",
        max_model_len: int,
        max_num_seqs: int = 128,
        kv_cache_mb: int = 512,
        trust_remote_code: bool = False,
    ) -> None:
        self._model = load_causal_lm(
            model_path, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
        )
        self._model.to(device_here()).requires_grad_(False)
        made = without_weights(model_path, trust_remote_code=trust_remote_code)
        self._layout = state_layout(made)
        fits = (kv_cache_mb << 20) // _cache_bytes(self._model.config, max_model_len, dtype)
        self._max_rows = max(1, min(max_num_seqs, fits))
        self._sampling, self._version, self._max_model_len = sampling, version, max_model_len
        self._queue: deque[Request] = deque()
        self._waves: list[_Wave] = []
        self._usable = True

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue `requests`. ValueError for a prompt that leaves no room for a response."""
        for request in requests:
            check_room(request, self._sampling, self._max_model_len)
        self._queue.extend(requests)

    def has_work(self) -> bool:
        """Whether any request is queued or in flight."""
        return bool(self._queue or self._waves)

    def step(self) -> list[Completion]:
        """Advance all requests in flight by one token each; return those that finished."""
        self._check_usable()
        free = self._max_rows - sum(len(wave.flights) for wave in self._waves)
        if self._queue and free > 0:
            starting = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
            self._waves.append(_Wave(self._model, starting))
        finished: list[Completion] = []
        for wave in self._waves:
            wave.step(self._sampling, self._version)
            done = [i for i, flight in enumerate(wave.flights) if self._ended(flight)]
            finished += [wave.flights[i].completion(self._sampling) for i in done]
            wave.drop(done)
        self._waves = [wave for wave in self._waves if wave.flights]
        return finished

    def abort(self, rollout_ids: Sequence[int]) -> None:
        """Forget these requests; unknown ids are ignored."""
        gone = set(rollout_ids)
        self._queue = deque(r for r in self._queue if r.rollout_id not in gone)
        for wave in self._waves:
            wave.drop([i for i, f in enumerate(wave.flights) if f.request.rollout_id in gone])
        self._waves = [wave for wave in self._waves if wave.flights]

    def load(self, version: Version, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights between two steps. Requests in flight go on under the new ones.

        Raises ValueError for tensors that are not this model's, all of them and of its shapes;
        nothing is changed then. EngineDead where copying fails: the process must end.
        """
        self._check_usable()
        state = self._layout.complete(tensors)
        self._usable = False
        own = self._model.state_dict()
        try:
            for name, tensor in state.items():
                own[name].copy_(tensor)
        except (RuntimeError, NotImplementedError) as error:
            raise EngineDead(f"loading version {version} failed half-way: {error}") from error
        self._usable, self._version = True, version

    @torch.no_grad()
    def token_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """float32 [n − 1] per sequence: log-prob of each token after the first, at temperature 1.

        Raises ValueError for a sequence of no token.
        """
        self._check_usable()
        if not all(map(len, sequences)):
            raise ValueError("token_logprobs takes sequences of 1 token and more, one has none")
        return [self._score(sequence) for sequence in sequences]

    def sleep(self) -> None:
        """It cannot: its memory stays."""

    def close(self) -> None:
        """Free the model."""
        self._usable = False
        self._waves.clear()
        self._queue.clear()

    def _score(self, sequence: Sequence[int]) -> np.ndarray:
        if len(sequence) == 1:
            return np.empty(0, np.float32)
        tokens_L = torch.tensor(sequence, device=self._model.device)
        logits_LV = self._model(tokens_L[None, :-1], use_cache=False).logits[0]
        logprobs_LV = logits_LV.log_softmax(-1, dtype=torch.float32)
        return logprobs_LV.gather(1, tokens_L[1:, None]).squeeze(1).cpu().numpy()

    def _ended(self, flight: Flight) -> bool:
        sampling = self._sampling
        at_eos = not sampling.ignore_eos and flight.tokens[-1] in sampling.eos_token_ids
        return at_eos or len(flight.tokens) >= sampling.max_tokens

    def _check_usable(self) -> None:
        if not self._usable:
            raise EngineDead(
                f"the model of version {self._version} is closed, or broke in the middle of a "
                f"load: end this process and start another generator"
            )


class _Wave:
    """Requests that started together: one left-padded batch with a key-value cache of its own."""

    def __init__(self, model: Any, requests: Sequence[Request]) -> None:
        self.flights = [Flight(request) for request in requests]
        self._model = model
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        longest = max(len(request.prompt_token_ids) for request in requests)
        tokens_BP = torch.zeros(len(requests), longest, dtype=torch.int64)
        mask_BP = torch.zeros(len(requests), longest, dtype=torch.int64)
        for row, request in enumerate(requests):
            n = len(request.prompt_token_ids)
            tokens_BP[row, longest - n :] = torch.tensor(request.prompt_token_ids)
            mask_BP[row, longest - n :] = 1
        self._next, self._mask_BL = tokens_BP.to(model.device), mask_BP.to(model.device)
        self._cache = DynamicCache(config=model.config)

    @torch.no_grad()
    def step(self, sampling: Sampling, version: Version) -> None:
        """Sample a token for each row from softmax(logits / temperature), by the row's own seed."""
        options = {}
        if self._takes_positions:
            positions_BL = (self._mask_BL.cumsum(1) - 1).clamp_min(0)
            options["position_ids"] = positions_BL[:, -self._next.shape[1] :]
        logits_BV = self._model(
            input_ids=self._next,
            attention_mask=self._mask_BL,
            past_key_values=self._cache,
            use_cache=True,
            **options,
        ).logits[:, -1]
        logprobs_BV = (logits_BV.float() / sampling.temperature).log_softmax(-1).cpu()
        probs_BV = logprobs_BV.exp()
        drawn = [
            torch.multinomial(probs_V, 1, generator=generator)
            for probs_V, generator in zip(probs_BV, self._generators, strict=True)
        ]
        tokens_B1 = torch.stack(drawn)
        chosen_B = logprobs_BV.gather(1, tokens_B1).squeeze(1).tolist()
        for flight, token, logprob in zip(
            self.flights, tokens_B1.squeeze(1).tolist(), chosen_B, strict=True
        ):
            flight.add(token, logprob, version)
        self._next = tokens_B1.to(self._mask_BL.device)
        self._mask_BL = torch.cat([self._mask_BL, torch.ones_like(self._next)], 1)

    def drop(self, rows: Sequence[int]) -> None:
        """Take these rows out of the batch and of the cache."""
        if not rows:
            return
        gone = set(rows)
        kept = [row for row in range(len(self.flights)) if row not in gone]
        self.flights = [self.flights[row] for row in kept]
        self._generators = [self._generators[row] for row in kept]
        index = torch.tensor(kept, dtype=torch.int64, device=self._mask_BL.device)
        self._next, self._mask_BL = self._next[index], self._mask_BL[index]
        self._cache.batch_select_indices(index)


def _cache_bytes(config: PretrainedConfig, positions: int, dtype: str) -> int:
    """Keys and values of one row of `positions` tokens, at most."""
    config = config.get_text_config()
    return (
        2 * config.num_hidden_layers * config.hidden_size * positions
        * getattr(torch, dtype).itemsize
    )  # fmt: skip
