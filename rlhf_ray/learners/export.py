"""The policy on its way out: whole tensors by name, probes, a transformers directory.

Gathering is collective: every rank calls the same method, and rank 0 alone gets what comes of it.
Shapes: L input positions, N predicted tokens.
"""

import contextlib
import copy
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf_ray.learners.group import Group
from rlhf_ray.learners.sharding import Weights, Whole
from rlhf_ray.models.actor_critic import Actor
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.packing import response_rows

_PREFIX = "model."  # of the language model within Actor


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter by its first one: of a tied head, under both."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = first.setdefault(id(parameter), name)
        names.setdefault(key, []).append(name)
    return names


class Exporter:
    """Gathers the policy of `actor`, whose float32 masters `weights` holds.

    Args:
        names: from `tied_names`, taken before the parameters were sharded.
        source: where the policy came from; its tokenizer goes with it.
        trust_remote_code: where the source is a name, its tokenizer may run code of its own.
    """

    def __init__(
        self,
        actor: Actor,
        weights: Weights,
        names: dict[str, list[str]],
        group: Group,
        *,
        dtype: torch.dtype,
        source: str | Path | None,
        trust_remote_code: bool = False,
    ) -> None:
        self.actor, self.weights, self.group = actor, weights, group
        self._names, self._dtype, self._source = names, dtype, source
        self._trust = trust_remote_code
        # Collected now: later FSDP2 may have put gathered tensors in place of these parameters.
        self._frozen = [(name, p) for name, p in actor.named_parameters() if not p.requires_grad]

    def export(self, dtype: torch.dtype | str) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor in `dtype`) of all that trains; tied ones under all their names.

        Every rank goes through the iterator to its end; only rank 0's yields. A tensor may be what
        the learner computes with: copy it before the next update. Frozen parameters and buffers do
        not come: engines have them from the checkpoint.
        """
        for name, tensor in self.weights.full_tensors(_dtype(dtype)):
            if self.group.rank != 0 or not name.startswith(_PREFIX):
                continue
            for alias in self._names[name.removeprefix(_PREFIX)]:
                yield alias, tensor

    @torch.no_grad()
    def probes(
        self, sequences: Sequence[Sequence[int]], *, dtype: torch.dtype | str = "float32"
    ) -> list[tuple[list[int], list[float]]]:
        """(token ids, log-probabilities of all but the first) of each sequence on rank 0, else [].

        At temperature 1: what any engine with these weights in `dtype` must give. In float32, but
        for sharded weights that are computed with and given away in bfloat16: no rank holds those
        whole.
        """
        if not sequences:
            return []
        with self._probing_actor(dtype) as actor:
            found = [] if actor is None else _logprobs(actor, sequences)
        return found if self.group.rank == 0 else []

    def save_policy(self, directory: str | Path) -> None:
        """Write float32 weights, config and tokenizer as `from_pretrained` and vLLM load them."""
        directory = Path(directory)
        whole = self._gathered_model()
        if whole is not None:
            directory.mkdir(parents=True, exist_ok=True)
            whole.save_pretrained(directory)
            if self._source is not None:
                _copy_tokenizer(self._source, directory, trust_remote_code=self._trust)
        self.group.barrier()

    @contextlib.contextmanager
    def _probing_actor(self, dtype: torch.dtype | str) -> Iterator[Actor | None]:
        """The actor that probes are computed with, on the ranks that have to run it."""
        if isinstance(self.weights, Whole):
            with self.weights.computing_in_float32():
                yield self.actor
        elif self._dtype in (torch.float32, _dtype(dtype)):
            yield self.actor
        else:
            model = self._gathered_model()  # on the host: a rank's GPU may have no room for it
            yield None if model is None else Actor(model).eval()

    def _gathered_model(self) -> Any:
        """A float32 model on the CPU of rank 0 with the policy's weights; None on other ranks."""
        model: Any = None
        if self.group.rank == 0:
            with torch.device("meta"):
                model = type(self.actor.model)(copy.deepcopy(self.actor.model.config))
            model = model.to_empty(device="cpu").eval()
            _restore_buffers(model, self.actor.model)
            model.tie_weights()
        targets = dict(model.named_parameters()) if model is not None else {}
        for name, tensor in chain(self.weights.full_tensors(torch.float32), _whole(self._frozen)):
            target = targets.get(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
            if target is not None:
                target.data.copy_(tensor)
        return model


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _logprobs(
    actor: Actor, sequences: Sequence[Sequence[int]]
) -> list[tuple[list[int], list[float]]]:
    tokens = [np.asarray(ids) for ids in sequences]
    starts, rests = [ids[:1] for ids in tokens], [ids[1:] for ids in tokens]
    device = next(actor.parameters()).device
    rows, index_N, targets_N = response_rows(starts, rests, device)
    out = actor(rows, index_N, targets_N, temperature=1.0)
    parts = out.logprobs_N.cpu().split(rows.lengths)
    return [(list(ids), part.tolist()) for ids, part in zip(sequences, parts, strict=True)]


def _whole(parameters: Iterable[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
    """Sharded ones gathered; all ranks take part."""
    for name, parameter in parameters:
        data = parameter.data
        yield name, data.full_tensor() if isinstance(data, DTensor) else data


def _restore_buffers(model: nn.Module, source: nn.Module) -> None:
    """Buffers (rotary frequencies and the like) are not parameters: copy them over."""
    values = dict(source.named_buffers())
    for name, buffer in model.named_buffers():
        buffer.copy_(values[name])


def _copy_tokenizer(source: str | Path, directory: Path, *, trust_remote_code: bool) -> None:
    """The tokenizer's own files where the source is a directory, else what the run loaded."""
    if not Path(source).is_dir():
        load_tokenizer(source, trust_remote_code=trust_remote_code).save_pretrained(directory)
        return
    for pattern in ("tokenizer*", "vocab*", "merges.txt", "*token*.json", "*.model", "*.jinja"):
        for file in Path(source).glob(pattern):
            shutil.copy2(file, directory / file.name)
    generation = Path(source) / "generation_config.json"
    if generation.is_file():
        shutil.copy2(generation, directory / generation.name)
