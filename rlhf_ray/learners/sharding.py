"""Where parameters lie: float32 masters that the optimizer moves, and what is computed with.

Two ways behind one interface. `Whole`: each rank holds all, computes in bfloat16 copies, and adds
gradients up in float32, over ranks once a step. `Sharded`: FSDP2, for models that do not fit into
one rank; it gathers and casts every parameter in every forward and backward pass.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from rlhf_ray.learners.group import Group
from rlhf_ray.models.layers import layers_of


@dataclass(frozen=True)
class Slice:
    """This rank's part of one parameter: rows `offset` to `offset + len(local)` of dimension 0."""

    name: str
    shape: tuple[int, ...]
    offset: int
    local: Tensor


class Weights(Protocol):
    """A module's parameters on this rank."""

    module: nn.Module
    writes_slices: bool
    """Whether this rank writes its slices into a checkpoint: each row has one writer."""

    def slices(self) -> list[Slice]:
        """The float32 masters, always in the same order, tied parameters once."""
        ...

    def collect_grads(self) -> list[Tensor]:
        """float32 gradients since the last call, one a slice: sums over micro-batches and ranks."""
        ...

    def norm(self, grads: list[Tensor]) -> Tensor:
        """√Σ g² over the whole module, from every rank's gradients; float64, no dimension."""
        ...

    def refresh(self) -> None:
        """Compute with the masters' new values from now on."""
        ...

    def full_tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor in `dtype`) one at a time; all ranks take part.

        A tensor may be what the learner computes with: copy it before the next step. No two share
        memory: they are kept until all have come.
        """
        ...


def own(module: nn.Module, *, group: Group, dtype: torch.dtype, shard: bool) -> Weights:
    """Take over a float32 module on its way to training in `dtype`; shard: over several ranks."""
    if shard and group.size > 1:
        return Sharded(module, group, dtype=dtype)
    return Whole(module, group, dtype=dtype)


class Whole:
    """All of a module on each rank.

    Masters, gradients and compute copies are one flat buffer each, so that clearing, casting and
    norms are single passes over memory.
    """

    def __init__(self, module: nn.Module, group: Group, *, dtype: torch.dtype) -> None:
        self.module, self._group = module.to(group.device), group
        self.writes_slices = group.rank == 0
        self.names, self.parameters = _trainable(module)
        self._master = torch.cat([p.detach().float().flatten() for p in self.parameters])
        self._grad = torch.zeros_like(self._master)
        self._compute = self._master if dtype == torch.float32 else self._master.to(dtype)
        self.masters = _split(self._master, self.parameters)
        self._grads = _split(self._grad, self.parameters)
        self._touched = [False] * len(self.parameters)
        self._copies = _split(self._compute, self.parameters)
        for i, view in enumerate(self._copies):
            self.parameters[i].data = view
            self.parameters[i].register_post_accumulate_grad_hook(self._add_grad(i))

    def _add_grad(self, i: int) -> Callable[[Tensor], None]:
        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None
            if self._touched[i]:
                self._grads[i].add_(parameter.grad)
            else:
                self._grads[i].copy_(parameter.grad)
            self._touched[i] = True
            parameter.grad = None

        return add

    def slices(self) -> list[Slice]:
        return [
            Slice(name, tuple(master.shape), 0, master)
            for name, master in zip(self.names, self.masters, strict=True)
        ]

    def collect_grads(self) -> list[Tensor]:
        for i, touched in enumerate(self._touched):
            if not touched:
                self._grads[i].zero_()
        self._touched = [False] * len(self._touched)
        self._group.sum(self._grad)
        return self._grads

    def norm(self, grads: list[Tensor]) -> Tensor:
        return _sum_of_squares(grads).sqrt()

    def refresh(self) -> None:
        if self._compute is not self._master:
            self._compute.copy_(self._master)

    @contextlib.contextmanager
    def computing_in_float32(self) -> Iterator[None]:
        """Compute with the masters themselves, for a while and without gradients."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.data = master
        try:
            yield
        finally:
            for parameter, half in zip(self.parameters, self._copies, strict=True):
                parameter.data = half

    def full_tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        there = self._copies if dtype == self._compute.dtype else self.masters
        for name, tensor in zip(self.names, there, strict=True):
            yield name, tensor.to(dtype)


class Sharded:
    """FSDP2: each rank keeps its rows of every parameter, in float32.

    It moves the layers to the device itself, one after another: no rank's device holds the whole.
    """

    def __init__(self, module: nn.Module, group: Group, *, dtype: torch.dtype) -> None:
        self.module, self._group = module, group
        self.writes_slices = True
        half = dtype != torch.float32
        policy = MixedPrecisionPolicy(
            param_dtype=dtype if half else None,
            reduce_dtype=torch.float32 if half else None,
            cast_forward_inputs=False,
        )
        for layer in layers_of(module):
            fully_shard(layer, mesh=group.mesh, mp_policy=policy)
        root = fully_shard(module, mesh=group.mesh, mp_policy=policy, reshard_after_forward=False)
        # What one rank's rows do not use (an expert), another's may; both must reduce the same.
        root.set_reduce_scatter_unused_params(True)
        self._root = root
        self.names, self.parameters = _trainable(module)

    def slices(self) -> list[Slice]:
        result = []
        for name, parameter in zip(self.names, self.parameters, strict=True):
            tensor = _dtensor(parameter)
            _, offset = compute_local_shape_and_global_offset(
                tensor.shape, tensor.device_mesh, tensor.placements
            )
            result.append(Slice(name, tuple(tensor.shape), offset[0], tensor.to_local()))
        return result

    def collect_grads(self) -> list[Tensor]:
        grads = []
        for parameter in self.parameters:
            if parameter.grad is None:
                grads.append(torch.zeros_like(_dtensor(parameter).to_local()))
            else:
                # FSDP2 averages over ranks; the losses are parts of one sum.
                grads.append(_dtensor(parameter.grad).to_local().mul_(self._group.size))
            parameter.grad = None
        return grads

    def norm(self, grads: list[Tensor]) -> Tensor:
        return self._group.sum(_sum_of_squares(grads)).sqrt()

    def refresh(self) -> None:
        """Drop what the root keeps gathered after a pass without a backward one.

        Otherwise FSDP2 gathers the masters at each forward pass.
        """
        self._root.reshard()

    def full_tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in zip(self.names, self.parameters, strict=True):
            yield name, _dtensor(parameter).full_tensor().to(dtype)


def _sum_of_squares(grads: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(grads)).double().square().sum()


def _dtensor(x: Tensor) -> DTensor:
    data = x.data
    assert isinstance(data, DTensor)
    return data


def _trainable(module: nn.Module) -> tuple[list[str], list[nn.Parameter]]:
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return [name for name, _ in named], [p for _, p in named]


def _split(flat: Tensor, like: list[nn.Parameter]) -> list[Tensor]:
    parts = flat.split([p.numel() for p in like])
    return [part.view(p.shape) for part, p in zip(parts, like, strict=True)]
