"""The PPO update over 1 to N ranks: one iteration's rollouts in, moved parameters and metrics out.

Every rank calls `update` with the same table. A rank computes its token-balanced share of the rows;
what is computed a row at a time is gathered, so that advantages, minibatches and decisions are the
same everywhere, and a loss is a part of one sum whose denominator is the whole minibatch's.

Shapes: N response tokens end to end.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from rlhf_ray.algos.advantages import ESTIMATORS
from rlhf_ray.algos.kl import AdaptiveKL
from rlhf_ray.config import PPO
from rlhf_ray.files import Fingerprint
from rlhf_ray.learners import state
from rlhf_ray.learners.export import Exporter, tied_names
from rlhf_ray.learners.group import Group
from rlhf_ray.learners.losses import Losses, Totals
from rlhf_ray.learners.microbatches import MicroBatch, micro_batches, minibatches
from rlhf_ray.learners.optimizer import Optimizer
from rlhf_ray.learners.rollouts import Rollouts
from rlhf_ray.learners.sharding import own
from rlhf_ray.learners.targets import OldPass, Targets, kl_of_samples, make_targets
from rlhf_ray.models.actor_critic import Actor, Critic
from rlhf_ray.models.layers import recompute_layers
from rlhf_ray.models.packing import packs

# Of one pass, where the settings give none. On a CPU a larger one leaves the processor's cache.
MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 16_384}


class PPOLearner:
    """Policy, critic and their optimizers on one rank of `group`.

    Args:
        actor: float32, with a value head where the trunk is shared.
        critic: float32, or None.
        settings: section `ppo` of the config.
        seed: of the run; decides the minibatches.
        temperature: of sampling; every log-probability is of logits / temperature.
        dtype: to compute in; parameters and optimizer stay float32.
        source: directory or name that the policy came from, whose tokenizer goes with it.

    Raises: ValueError where the estimator needs a critic and there is none.
    """

    def __init__(
        self,
        actor: Actor,
        critic: Critic | None,
        *,
        settings: PPO,
        seed: int,
        temperature: float,
        dtype: torch.dtype = torch.float32,
        group: Group | None = None,
        source: str | Path | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._source, self._trust = source, trust_remote_code
        self.settings, self.seed, self.temperature = settings, seed, temperature
        self.group = group or Group()
        has_values = critic is not None or actor.value_head is not None
        if ESTIMATORS[settings.estimator].needs_values and not has_values:
            raise ValueError(f"estimator {settings.estimator} needs a critic, and none was given")
        trunks = [actor.model.base_model, *([critic.backbone] if critic else [])]
        self._packed = all(packs(trunk) for trunk in trunks)
        self._take_over(actor, critic, dtype)
        self.kl_coef = AdaptiveKL(
            settings.kl_coef, settings.kl_target or math.inf, settings.kl_horizon
        )

    def _take_over(self, actor: Actor, critic: Critic | None, dtype: torch.dtype) -> None:
        """Make the models' parameters this learner's, to train in `dtype`."""
        eps, shard = self.settings.adam_eps, self.settings.shard_weights
        self.actor, self.critic = actor.eval(), critic
        if self.settings.activation_checkpointing:
            recompute_layers(actor)
            if critic is not None:
                recompute_layers(critic)
        names = tied_names(actor.model)
        weights = own(actor, group=self.group, dtype=dtype, shard=shard)
        self.exporter = Exporter(
            actor,
            weights,
            names,
            self.group,
            dtype=dtype,
            source=self._source,
            trust_remote_code=self._trust,
        )
        apart = {"value_head.": self.settings.value_head_lr}
        self.policy_optimizer = Optimizer(weights, lr=self.settings.lr, eps=eps, apart=apart)
        self.critic_optimizer = None
        if critic is not None:
            weights = own(critic.eval(), group=self.group, dtype=dtype, shard=shard)
            rate = self.settings.critic_lr
            self.critic_optimizer = Optimizer(weights, lr=rate, eps=eps)

    def calibrate(self, *, mean: float, std: float) -> None:
        """A critic that started as a reward model: how that one's raw scores become rewards."""
        if self.critic is not None:
            self.critic.calibrate(mean=mean, std=std)

    def update(self, step: int, table: pa.Table) -> dict[str, float]:
        """Learn from one iteration's joined rollouts; returns the metrics of docs/metrics.md.

        Raises: FloatingPointError naming step and quantity, before the optimizer step that NaN or
            inf would spoil; ValueError for a table that cannot be learned from.
        """
        rollouts = Rollouts.from_table(table)
        old = self._old_pass(rollouts, of=f"step {step}")
        targets, stats = make_targets(
            rollouts, old, self.settings, kl_coef=self.kl_coef.coef, step=step
        )
        stats["lr"] = self._anneal(step)
        stats["kl/coef"] = self.kl_coef.coef
        stats |= self._learn(rollouts, targets, step)
        if self.settings.kl_target is not None:
            self.kl_coef.update(kl_of_samples(stats)[0], len(rollouts))
        return stats

    def old_pass(self, table: pa.Table) -> OldPass:
        """Log-probabilities, entropies and values of these rollouts, without learning from them."""
        return self._old_pass(Rollouts.from_table(table), of="these rollouts")

    def parameters(self) -> int:
        """How many parameters the policy has, tied ones counted once."""
        return sum(math.prod(s.shape) for s in self.exporter.weights.slices())

    def export(self, dtype: torch.dtype | str) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor) of the policy: see `Exporter.export`."""
        return self.exporter.export(dtype)

    def probes(
        self, sequences: Sequence[Sequence[int]], *, dtype: torch.dtype | str = "float32"
    ) -> list[tuple[list[int], list[float]]]:
        """Log-probabilities of fixed sequences: see `Exporter.probes`."""
        return self.exporter.probes(sequences, dtype=dtype)

    def save_policy(self, directory: str | Path) -> None:
        """Write the policy as transformers loads it: see `Exporter.save_policy`."""
        self.exporter.save_policy(directory)

    def save(self, directory: str | Path) -> dict[str, Fingerprint]:
        """Write this rank's part of the state; all ranks take part. See `state.save`."""
        scalars = {
            "kl_coef": self.kl_coef.coef,
            "rng": torch.get_rng_state().numpy().tobytes().hex(),
        }
        return state.save(directory, self.optimizers(), scalars, self.group)

    def load(self, directory: str | Path) -> None:
        """Go on from a saved state, written by any number of ranks; all ranks take part.

        β goes on where it had come to if it adapts and was above 0; else it is the settings'.
        Raises ValueError naming what is missing, damaged or of another shape.
        """
        scalars = state.load(directory, self.optimizers(), self.group)
        if self.settings.kl_target is not None and scalars["kl_coef"] > 0:
            self.kl_coef.load_state_dict({"value": scalars["kl_coef"]})
        rng = bytearray.fromhex(scalars["rng"])
        torch.set_rng_state(torch.frombuffer(rng, dtype=torch.uint8))

    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers by role: what has to be saved."""
        found = {"policy": self.policy_optimizer}
        if self.critic_optimizer is not None:
            found["critic"] = self.critic_optimizer
        return found

    def _anneal(self, step: int) -> float:
        share = 1.0
        if self.settings.lr_schedule == "linear":
            share = max(0.0, 1 - step / self.settings.iterations)
        if self.critic_optimizer is not None:
            self.critic_optimizer.set_lr(share)
        return self.policy_optimizer.set_lr(share)

    def _micro_batches(self, rollouts: Rollouts, rows: Sequence[int]) -> Iterator[MicroBatch]:
        budget = self.settings.micro_batch_tokens or MICRO_BATCH_TOKENS[self.group.device.type]
        return micro_batches(
            rollouts,
            rows,
            rank=self.group.rank,
            ranks=self.group.size,
            budget=budget,
            packed=self._packed,
            device=self.group.device,
        )

    @torch.no_grad()
    def _old_pass(self, rollouts: Rollouts, *, of: str) -> OldPass:
        """Log-probabilities, entropies and values before the update, of all rows on every rank."""
        found_3N = torch.zeros(3, rollouts.tokens)
        for micro in self._micro_batches(rollouts, range(len(rollouts))):
            out = self.actor(
                micro.rows,
                micro.index_N,
                micro.targets_N,
                temperature=self.temperature,
                entropy=True,
            )
            values_N = out.values_N
            if self.critic is not None:
                values_N = self.critic(micro.rows, micro.index_N)
            rows = [out.logprobs_N, out.entropies_N]
            rows += [] if values_N is None else [values_N]
            found_3N[: len(rows), micro.token_index_N] = torch.stack(rows).cpu()
        found_3N = self.group.sum(found_3N.to(self.group.device)).cpu()
        for name, x_N in zip(("log-probabilities", "entropies", "values"), found_3N, strict=True):
            if not bool(x_N.isfinite().all()):
                raise FloatingPointError(f"old {name} of {of} hold NaN or inf")
        has_values = self.critic is not None or self.actor.value_head is not None
        return OldPass(found_3N[0], found_3N[1], found_3N[2] if has_values else None)

    def _learn(self, rollouts: Rollouts, targets: Targets, step: int) -> dict[str, float]:
        """Epochs of optimizer steps; metrics over all of them."""
        if step == self.settings.warmup_iterations and self.critic is None:
            # In warm-up the trunk's gradients were zero, and so are its moments: with these, Adam's
            # next steps would be .5 to 3 times lr.
            self.policy_optimizer.restart()
        totals = Totals()
        losses = Losses(targets, self.settings, self.group.device, kl_coef=self.kl_coef.coef)
        for epoch in range(self.settings.epochs):
            parts = minibatches(
                len(rollouts), self.settings.minibatches, seed=self.seed, step=step, epoch=epoch
            )
            for number, rows in enumerate(parts):
                where = f"step {step}, epoch {epoch}, minibatch {number}"
                self._minibatch(rollouts, rows, losses, totals, step=step, where=where)
        return totals.metrics(self.group)

    def _minibatch(
        self,
        rollouts: Rollouts,
        rows: Sequence[int],
        losses: Losses,
        totals: Totals,
        *,
        step: int,
        where: str,
    ) -> None:
        """One optimizer step of policy and critic: gradients of all micro-batches, then move."""
        warming_up = step < self.settings.warmup_iterations
        denominator = float(rollouts.lengths_B[torch.tensor(rows)].sum())
        batches = list(self._micro_batches(rollouts, rows))
        losses.begin(denominator)
        if not (warming_up and self.critic is not None):
            for micro in batches:
                self._policy_loss(micro, losses, values_only=warming_up).backward()
            self._step(self.policy_optimizer, losses, totals, "grad/norm", where)
        if self.critic is not None and self.critic_optimizer is not None:
            for micro in batches:
                values_N = self.critic(micro.rows, micro.index_N)
                losses.value(micro, values_N).backward()
            self._step(self.critic_optimizer, losses, totals, "grad/norm_critic", where)
        totals.add(losses)

    def _policy_loss(self, micro: MicroBatch, losses: Losses, *, values_only: bool) -> Tensor:
        """The policy's loss, with a shared trunk the value's too; in warm-up the value head's."""
        out = self.actor(
            micro.rows,
            micro.index_N,
            micro.targets_N,
            temperature=self.temperature,
            detach_trunk=values_only,
        )
        loss = out.logprobs_N.sum() * 0.0 if values_only else losses.policy(micro, out.logprobs_N)
        if out.values_N is not None:
            loss = loss + self.settings.value_coef * losses.value(micro, out.values_N)
        return loss

    def _step(
        self, optimizer: Optimizer, losses: Losses, totals: Totals, name: str, where: str
    ) -> None:
        """Move, unless the loss or the gradient of any rank is not finite."""
        norm_tensor, grads = optimizer.norm_and_grads()
        norm = float(norm_tensor)
        for quantity, value in (*losses.sums(self.group).items(), (name, norm)):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{quantity} is {value} at {where}: no step with it was taken"
                )
        totals.gradient(name, norm)
        optimizer.step(grads, norm=norm, max_norm=self.settings.max_grad_norm)
