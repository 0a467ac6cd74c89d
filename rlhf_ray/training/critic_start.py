"""Whether a separate critic starts as the reward model: that one must read the policy's rows."""

from transformers import PretrainedConfig

from rlhf_ray.algos.advantages import ESTIMATORS
from rlhf_ray.config import Config, Reward
from rlhf_ray.models.ensemble import first_member
from rlhf_ray.models.loading import is_causal, load_config, load_tokenizer, positions_of
from rlhf_ray.models.reward_model import backbone_config
from rlhf_ray.rewards.tokens import fingerprint
from rlhf_ray.training.paths import reward_of


def model_of(reward: Reward) -> str | None:
    """The first reward model that scores, or its ensemble's first member; None: there is none."""
    models = [source.model for source in reward.sources if source.model]
    return str(first_member(models[0])) if models else None


def why_from_policy(config: Config, policy: str | None) -> str | None:
    """Why a separate critic starts from the policy's trunk.

    None: it starts as the reward model, or the run has no such critic.
    policy: where its tokenizer is; None where SFT is yet to make one, which is then not compared.
    Of a reward model that is yet to be trained, what it grows from is looked at.
    """
    if config.ppo.critic != "separate" or not ESTIMATORS[config.ppo.estimator].needs_values:
        return None
    reward, trust = reward_of(config), config.model.trust_remote_code
    if reward is not None:
        model = model_of(reward)
        if model is None:
            return _told("no source of the reward is a reward model")
        backbone, name = backbone_config(model, trust_remote_code=trust), model
    elif config.rm.base is not None:
        backbone, name = load_config(config.rm.base, trust_remote_code=trust), config.rm.base
    else:  # it grows from the policy
        return None
    fault = _fault(config, backbone, name, policy)
    return _told(f"{name} {fault}") if fault else None


def _fault(config: Config, backbone: PretrainedConfig, name: str, policy: str | None) -> str | None:
    """What keeps a critic with this backbone, and the tokenizer at `name`, from the policy's rows.

    None: nothing.
    """
    if not is_causal(backbone):
        return "is an encoder, which cannot give a value at each token"
    asked = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    room = positions_of(backbone)
    if room is not None and asked > room:
        return f"takes {room} tokens, and a prompt with its response may have {asked}"
    if policy is None:
        return None
    trust = config.model.trust_remote_code
    own, other = (
        fingerprint(load_tokenizer(path, trust_remote_code=trust)) for path in (policy, name)
    )
    return None if own == other else "has another tokenizer than the policy"


def _told(cause: str) -> str:
    return f"the critic starts from the policy, not as the reward model: {cause}"
