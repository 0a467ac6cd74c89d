"""Which settings an advantage estimator takes, by what its row says."""

from rlhf_ray.algos.advantages import ESTIMATORS
from rlhf_ray.config import PPO


def check_estimator(ppo: PPO) -> None:
    """Raise ValueError where `ppo.estimator` does not go with the other settings."""
    row = ESTIMATORS[ppo.estimator]
    if row.needs_group and ppo.samples < 2:
        alone = [name for name, other in ESTIMATORS.items() if not other.needs_group]
        raise ValueError(
            f"ppo.estimator {ppo.estimator} compares responses to the same prompt, and ppo.samples "
            f"is {ppo.samples}: set --ppo.samples 4, or --ppo.estimator {' or '.join(alone)}"
        )
    if ppo.warmup_iterations and not row.needs_values:
        raise ValueError(
            f"ppo.warmup_iterations {ppo.warmup_iterations} is of a critic, and ppo.estimator "
            f"{ppo.estimator} has none: leave one of the two out"
        )
