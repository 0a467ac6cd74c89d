"""Between which numbers a setting must lie: one table for all sections.

What depends on two settings is checked where their section is (`config`).
"""

from typing import Any

LEAST = {
    1: (
        "model.hidden", "model.layers", "model.vocab", "sft.batch_tokens", "sft.max_tokens",
        "rm.batch_lists", "rm.max_tokens", "rm.members",
        "rollout.max_response_tokens", "rollout.shard_prompts", "rollout.max_in_flight",
        "rollout.kv_cache_mb", "rollout.tensor_parallel", "ppo.iterations", "ppo.prompts",
        "ppo.samples", "ppo.epochs", "ppo.minibatches", "ppo.micro_batch_tokens",
        "cluster.generators", "cluster.learners", "cluster.scorers", "cluster.threads",
        "checkpoint.every", "checkpoint.keep", "evaluate.every", "evaluate.prompts",
    ),
    0: (
        "data.heldout_fraction", "sft.epochs", "sft.lr", "rm.lr", "ppo.lr", "ppo.critic_lr",
        "ppo.value_head_lr", "ppo.warmup_iterations", "ppo.gamma", "ppo.lam", "ppo.clip_low",
        "ppo.clip_high", "ppo.value_clip", "ppo.value_coef", "ppo.kl_coef", "ppo.max_staleness",
        "reward.missing_eos_penalty", "cluster.generator_cpus", "cluster.learner_cpus",
        "cluster.scorer_cpus", "cluster.generator_gpus", "cluster.learner_gpus",
        "cluster.scorer_gpus",
    ),
}  # fmt: skip
ABOVE = {
    0: (
        "rm.epochs", "strength.epochs", "reward.clip", "rollout.temperature", "ppo.adam_eps",
        "ppo.max_grad_norm", "ppo.kl_target", "ppo.kl_horizon", "ppo.importance_cap",
        "cluster.start_timeout_s", "cluster.shard_timeout_s", "cluster.update_timeout_s",
        "cluster.heartbeat_timeout_s",
    ),
    1: ("ppo.dual_clip",),
}  # fmt: skip
MOST = {1: ("ppo.gamma", "ppo.lam", "ppo.clip_low")}
BELOW = {1: ("data.heldout_fraction",)}


def check(config: Any) -> None:
    """Raise ValueError, with its flag, for the first number of `config` out of its limits."""
    for limits, fits, words in (
        (LEAST, lambda value, limit: value >= limit, "at least"),
        (ABOVE, lambda value, limit: value > limit, "above"),
        (MOST, lambda value, limit: value <= limit, "at most"),
        (BELOW, lambda value, limit: value < limit, "below"),
    ):
        for limit, names in limits.items():
            for name in names:
                section, field = name.split(".")
                value = getattr(getattr(config, section), field)
                if value is not None and not fits(value, limit):
                    flag = name.replace("_", "-")
                    raise ValueError(f"--{flag} is {value}; it must be {words} {limit}")
