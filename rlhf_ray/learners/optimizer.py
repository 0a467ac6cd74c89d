"""AdamW over this rank's slices, with the gradient norm taken over all ranks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf_ray.learners.sharding import Slice, Weights


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) without decay, float32, on the masters of one module.

    lr: the peak rate. apart: what the names of other parameters begin with, and their peak rate.
    """

    def __init__(
        self, weights: Weights, *, lr: float, eps: float, apart: Mapping[str, float] | None = None
    ) -> None:
        self.weights = weights
        self._slices = weights.slices()
        by_rate: dict[float, list[Tensor]] = {lr: []}
        for slice_ in self._slices:
            rates = [r for start, r in (apart or {}).items() if slice_.name.startswith(start)]
            by_rate.setdefault(rates[0] if rates else lr, []).append(slice_.local)
        self._peaks = tuple(by_rate)
        groups = [{"params": local, "lr": rate} for rate, local in by_rate.items()]
        self._adam = torch.optim.AdamW(groups, eps=eps, weight_decay=0.0, fused=True)

    def set_lr(self, share: float) -> float:
        """Learn at this share of the peak rates; returns what that is of `lr`."""
        for group, peak in zip(self._adam.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
        return self._peaks[0] * share

    def norm_and_grads(self) -> tuple[Tensor, list[Tensor]]:
        """(norm of the gradient over all ranks, this rank's gradients)."""
        grads = self.weights.collect_grads()
        return self.weights.norm(grads), grads

    def step(self, grads: list[Tensor], *, norm: float, max_norm: float) -> None:
        """One step with gradients scaled down to `max_norm` where their norm is above it."""
        if norm > max_norm:
            torch._foreach_mul_(grads, max_norm / (norm + 1e-6))
        for slice_, grad in zip(self._slices, grads, strict=True):
            slice_.local.grad = grad
        self._adam.step()
        for slice_ in self._slices:
            slice_.local.grad = None
        self.weights.refresh()

    def restart(self) -> None:
        """Forget the steps taken and their moments."""
        self._adam.state.clear()

    def moments(self) -> list[tuple[Slice, Tensor, Tensor]]:
        """(slice, exp_avg, exp_avg_sq) of every slice, made (zero) where no step was taken yet."""
        result = []
        for slice_ in self._slices:
            state = self._adam.state[slice_.local]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=slice_.local.device)
                state["exp_avg"] = torch.zeros_like(slice_.local)
                state["exp_avg_sq"] = torch.zeros_like(slice_.local)
            result.append((slice_, state["exp_avg"], state["exp_avg_sq"]))
        return result

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        first = self._adam.state.get(self._slices[0].local)
        return int(first["step"]) if first else 0

    @steps.setter
    def steps(self, steps: int) -> None:
        self.moments()
        for slice_ in self._slices:
            self._adam.state[slice_.local]["step"].fill_(float(steps))
