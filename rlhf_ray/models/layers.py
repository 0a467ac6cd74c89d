"""A trunk's layers: which they are, and running them again in the backward pass."""

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The list of modules within `module` that holds the most parameters."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=_parameters, default=[]))


def recompute_layers(module: nn.Module) -> None:
    """Let each layer keep its input alone until the backward pass, and run again there.

    (Chen et al. 2016.) Gradients stay what they are, at the cost of one more forward pass. Layers
    must draw no random numbers: the second run would draw others.
    """
    for layer in layers_of(module):
        own: Any = type(layer)
        layer.__class__ = _recomputing(own)  # so that a copy runs its own weights


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@functools.cache
def _recomputing(own: Any) -> Any:
    """`own` with a forward pass that keeps no activations."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = functools.partial(own.forward, self)
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return type(f"Recomputing{own.__name__}", (own,), {"forward": forward})
