"""A learner from directories: the policy, and a critic from the reward model or at zero."""

from pathlib import Path
from typing import Any

import torch

from rlhf_ray.algos.advantages import ESTIMATORS
from rlhf_ray.config import PPO
from rlhf_ray.learners.group import Group
from rlhf_ray.learners.ppo import PPOLearner
from rlhf_ray.models.actor_critic import Actor, Critic, check_head, value_head_for
from rlhf_ray.models.loading import load_causal_lm
from rlhf_ray.models.norms import use_short_norms
from rlhf_ray.models.packing import use_packing
from rlhf_ray.models.reward_model import RewardModel


def build_learner(
    policy: str | Path,
    *,
    settings: PPO,
    seed: int,
    temperature: float,
    dtype: torch.dtype = torch.float32,
    group: Group | None = None,
    reward_model: str | Path | None = None,
    trust_remote_code: bool = False,
) -> PPOLearner:
    """Load the policy at `policy`, and the critic that the settings ask for.

    A separate critic starts from `reward_model` (a directory that RewardModel wrote, with the
    policy's tokenizer and a causal backbone), else from the policy's trunk with a zero head.
    """
    actor = Actor(prepare(load_causal_lm(policy, trust_remote_code=trust_remote_code)))
    check_head(actor)
    critic = None
    if ESTIMATORS[settings.estimator].needs_values:
        if settings.critic == "shared":
            actor.value_head = value_head_for(actor.model)
        elif reward_model is None:
            model = prepare(load_causal_lm(policy, trust_remote_code=trust_remote_code))
            critic = new_critic(model.base_model)
        else:
            critic = critic_from_reward_model(reward_model, trust_remote_code=trust_remote_code)
    return PPOLearner(
        actor,
        critic,
        settings=settings,
        seed=seed,
        temperature=temperature,
        dtype=dtype,
        group=group,
        source=policy,
        trust_remote_code=trust_remote_code,
    )


def prepare(model: Any) -> Any:
    """A model as the learner runs it: dropout off, rows end to end, norms by the faster way."""
    use_short_norms(model)
    use_packing(model)
    return model.eval()


def new_critic(backbone: Any) -> Critic:
    """A critic on this trunk that says 0 everywhere."""
    return Critic(backbone, value_head_for(backbone))


def critic_from_reward_model(path: str | Path, *, trust_remote_code: bool = False) -> Critic:
    """A critic that starts as the reward model: its trunk, and its head on the position's features.

    With `last` pooling a value is at first the score of the text so far, raw until the critic is
    told the run's calibration; with `mean` the head was made for the mean of these features, so it
    starts from something near.
    Raises ValueError where its backbone is an encoder, which sees what comes after.
    """
    model = RewardModel.from_pretrained(path, merge=True, trust_remote_code=trust_remote_code)
    if not model.is_causal:
        raise ValueError(
            f"the reward model at {path} has an encoder, which cannot give a value at each token: "
            f"build the learner without `reward_model`, and it starts from the policy's trunk"
        )
    weight_D, bias = model.head.weight.detach().float(), model.head.bias.detach().float()
    head = value_head_for(model.backbone, weight_D=weight_D, bias=bias)
    return Critic(prepare(model.backbone), head)
