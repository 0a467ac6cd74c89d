"""Between which numbers a setting must lie: one table for all sections.

Each number of the config has a row, and each float is finite but for those of `MAY_BE_INF`. What
depends on two settings is checked where their section is (`config`).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

LEAST = {
    2: ("rm.contrastive.prototypes", "strength.models", "strength.folds"),
    1: (
        "data.prompt_prefix_chars", "data.max_prompt_tokens", "model.hidden", "model.layers",
        "model.vocab", "sft.batch_tokens", "sft.max_tokens", "rm.batch_lists", "rm.max_tokens",
        "rm.members", "rm.meta.prompts", "reward.sources.processes",
        "rollout.max_response_tokens", "rollout.shard_prompts", "rollout.max_in_flight",
        "rollout.kv_cache_mb", "rollout.tensor_parallel", "ppo.iterations", "ppo.prompts",
        "ppo.samples", "ppo.epochs", "ppo.minibatches", "ppo.micro_batch_tokens",
        "cluster.generators", "cluster.learners", "cluster.scorers", "cluster.threads",
        "checkpoint.every", "checkpoint.keep", "evaluate.every", "evaluate.prompts",
    ),
    0.01: ("rollout.temperature",),  # vLLM takes what lies below for this
    0: (
        "run.seed", "data.heldout_fraction", "sft.epochs", "sft.lr", "sft.warmup",
        "sft.weight_decay", "rm.lr", "rm.warmup", "rm.label_smoothing", "rm.token_dropout",
        "rm.lm_coef", "rm.centring", "rm.caution", "rm.weight_decay", "rm.lora.rank",
        "rm.lora.dropout", "rm.contrastive.weight", "rm.meta.eta", "reward.missing_eos_penalty",
        "reward.sources.caution", "reward.sources.label", "ppo.lr", "ppo.critic_lr",
        "ppo.value_head_lr", "ppo.warmup_iterations", "ppo.gamma", "ppo.lam", "ppo.clip_low",
        "ppo.clip_high", "ppo.value_clip", "ppo.value_coef", "ppo.kl_coef", "ppo.max_staleness",
        "cluster.generator_cpus", "cluster.learner_cpus", "cluster.scorer_cpus",
        "cluster.generator_gpus", "cluster.learner_gpus", "cluster.scorer_gpus",
    ),
}  # fmt: skip
ABOVE = {
    0: (
        "rm.epochs", "rm.lora.alpha", "rm.contrastive.dropout", "strength.epochs", "reward.clip",
        "reward.sources.timeout_s", "ppo.adam_eps", "ppo.max_grad_norm",
        "ppo.kl_target", "ppo.kl_horizon", "ppo.kl_limit", "ppo.importance_cap",
        "cluster.start_timeout_s", "cluster.shard_timeout_s", "cluster.update_timeout_s",
        "cluster.heartbeat_timeout_s",
    ),
    1: ("ppo.dual_clip",),
}  # fmt: skip
MOST = {
    1: ("sft.warmup", "rm.warmup", "ppo.gamma", "ppo.lam", "ppo.clip_low"),
    2**12: ("ppo.samples",),  # of a rollout's id (data.ids)
    2**19 - 1: ("ppo.iterations",),
    2**63 - 1: ("run.seed",),
}
BELOW = {
    0.5: ("rm.label_smoothing",),
    1: ("data.heldout_fraction", "rm.token_dropout", "rm.lora.dropout", "rm.contrastive.dropout"),
}
FREE = ("rm.margin", "reward.sources.weight", "reward.sources.default")
MAY_BE_INF = ("ppo.clip_high", "ppo.value_clip", "ppo.max_grad_norm", "ppo.importance_cap")


def check(config: Any) -> None:
    """Raise ValueError, with its flag, for the first number of `config` out of its limits."""
    for name, value in _numbers(config, ""):
        wanted = _violated(re.sub(r"\.\d+\.", ".", name), value)
        if wanted:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be {wanted}")


def _numbers(node: Any, name: str) -> Iterator[tuple[str, float]]:
    """(dotted name, number) of each number in a tree of dataclasses, None and flags left out.

    That of a dataclass in a tuple has its index in its name: `reward.sources.0.weight`.
    """
    if isinstance(node, int | float) and not isinstance(node, bool):
        yield name, node
    elif is_dataclass(node):
        for field in fields(node):
            yield from _numbers(getattr(node, field.name), f"{name}.{field.name}".lstrip("."))
    elif isinstance(node, tuple | list):
        for index, item in enumerate(node):
            yield from _numbers(item, f"{name}.{index}" if is_dataclass(item) else name)


def _violated(name: str, value: float) -> str | None:
    """What the number of this name must be and is not."""
    is_inf = isinstance(value, float) and math.isinf(value)
    if value != value or (is_inf and name not in MAY_BE_INF):
        return "a finite number"
    for limits, fits, words in (
        (LEAST, lambda limit: value >= limit, "at least"),
        (ABOVE, lambda limit: value > limit, "above"),
        (MOST, lambda limit: value <= limit, "at most"),
        (BELOW, lambda limit: value < limit, "below"),
    ):
        for limit, names in limits.items():
            if name in names and not fits(limit):
                return f"{words} {limit}"
    return None
