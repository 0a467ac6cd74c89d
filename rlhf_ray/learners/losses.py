"""The losses of one micro-batch as its part of the minibatch's sum, and their metrics.

Shapes: N response tokens of the micro-batch end to end; as rows of one token they are [N, 1].
"""

import torch
from torch import Tensor

from rlhf_ray.algos.losses import (
    Diagnostics,
    combine_diagnostics,
    kl_loss,
    policy_loss,
    value_loss,
)
from rlhf_ray.config import PPO
from rlhf_ray.learners.group import Group
from rlhf_ray.learners.microbatches import MicroBatch
from rlhf_ray.learners.targets import Targets


class Losses:
    """Losses against one update's targets; `begin` starts a minibatch."""

    def __init__(
        self, targets: Targets, settings: PPO, device: torch.device, *, kl_coef: float
    ) -> None:
        self._targets, self._settings, self._device = targets, settings, device
        self._kl_coef = kl_coef
        self.begin(1.0)

    def begin(self, denominator: float) -> None:
        """A new minibatch, with this many response tokens on all ranks together."""
        self.denominator = denominator
        self.losses: dict[str, Tensor] = {}
        self.policy_parts: list[Diagnostics] = []

    def policy(self, micro: MicroBatch, logprobs_N: Tensor) -> Tensor:
        """Clipped surrogate, plus β·k3 where the KL is in the loss."""
        s, t = self._settings, self._targets
        mask_N1 = torch.ones_like(logprobs_N, dtype=torch.bool)[:, None]
        loss, diagnostics = policy_loss(
            logprobs_N[:, None],
            self._column(t.old_logprobs_N, micro),
            self._column(t.advantages_N, micro),
            mask_N1,
            clip_low=s.clip_low,
            clip_high=s.clip_high,
            dual_clip=s.dual_clip,
            weights_BT=None if t.weights_N is None else self._column(t.weights_N, micro),
            denominator=self.denominator,
        )
        self.policy_parts.append(diagnostics)
        if t.ref_logprobs_N is not None:
            ref_N1 = self._column(t.ref_logprobs_N, micro)
            penalty, _ = kl_loss(logprobs_N[:, None], ref_N1, mask_N1, denominator=self.denominator)
            loss = loss + self._kl_coef * penalty
        return self._note("loss/policy", loss)

    def value(self, micro: MicroBatch, values_N: Tensor) -> Tensor:
        """Clipped value loss."""
        t = self._targets
        assert t.old_values_N is not None and t.returns_N is not None
        loss, _ = value_loss(
            values_N[:, None],
            self._column(t.old_values_N, micro),
            self._column(t.returns_N, micro),
            torch.ones_like(values_N, dtype=torch.bool)[:, None],
            clip=self._settings.value_clip,
            denominator=self.denominator,
        )
        return self._note("loss/value", loss)

    def sums(self, group: Group) -> dict[str, float]:
        """The minibatch's losses so far, over all micro-batches and ranks."""
        names = sorted(self.losses)
        totals = group.sum(torch.stack([self.losses[name] for name in names]))
        return dict(zip(names, totals.tolist(), strict=True))

    def _note(self, name: str, loss: Tensor) -> Tensor:
        part = loss.detach().double()
        self.losses[name] = self.losses[name] + part if name in self.losses else part
        return loss

    def _column(self, x_N: Tensor, micro: MicroBatch) -> Tensor:
        return x_N[micro.token_index_N, None].to(self._device)


class Totals:
    """Sums over an update's optimizer steps, turned into metrics once at its end."""

    def __init__(self) -> None:
        self._losses: dict[str, list[Tensor]] = {}
        self._norms: dict[str, list[float]] = {}
        self._policy: list[Diagnostics] = []

    def add(self, losses: Losses) -> None:
        """A finished minibatch."""
        for name, loss in losses.losses.items():
            self._losses.setdefault(name, []).append(loss)
        self._policy += losses.policy_parts

    def gradient(self, name: str, norm: float) -> None:
        """A gradient's norm over all ranks, before clipping."""
        self._norms.setdefault(name, []).append(norm)

    def metrics(self, group: Group) -> dict[str, float]:
        """Means over optimizer steps (losses, norms) and over tokens (the rest)."""
        stats = {name: sum(norms) / len(norms) for name, norms in self._norms.items()}
        for name, parts in sorted(self._losses.items()):
            stats[name] = float(group.sum(torch.stack(parts).mean()))
        if self._policy:
            d = _over_ranks(self._policy, group)
            stats["policy/clip_fraction"] = float(d["clipped"] / d["tokens"])
            stats["policy/ratio_max"] = float(d["ratio_max"])
            stats["policy/approx_kl"] = float(d["k3"] / d["tokens"])
        return stats


def _over_ranks(parts: list[Diagnostics], group: Group) -> Diagnostics:
    whole = combine_diagnostics(parts)
    return {
        name: group.max(x) if name.endswith("_max") else group.sum(x) for name, x in whole.items()
    }
