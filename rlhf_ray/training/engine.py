"""What an engine needs to know of a run and its policy: longest row, type of the weights."""

from transformers import PretrainedConfig

from rlhf_ray.config import Config
from rlhf_ray.models.loading import compute_dtype, load_config, positions_of


def context_tokens(config: Config, policy: str) -> int:
    """Tokens of the longest prompt and response. ValueError where the model takes fewer."""
    model = load_config(policy, trust_remote_code=config.model.trust_remote_code)
    check_context(config, model, f"the model at {policy}")
    return config.data.max_prompt_tokens + config.rollout.max_response_tokens


def check_context(config: Config, model: PretrainedConfig, name: str) -> None:
    """Raise ValueError where the longest prompt and response are more than `model` takes."""
    asked = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    room = positions_of(model)
    if room is not None and asked > room:
        raise ValueError(
            f"data.max_prompt_tokens {config.data.max_prompt_tokens} and "
            f"rollout.max_response_tokens {config.rollout.max_response_tokens} make {asked}, "
            f"and {name} takes {room}: lower one of the two"
        )


def weights_dtype(config: Config, device: str) -> str:
    """Without a wish of the user's: what the learner computes in on `device`.

    A GPU may be another node's, and is taken for one that multiplies bfloat16 natively; of CPUs
    this node's is asked.
    """
    if config.rollout.dtype != "auto":
        return config.rollout.dtype
    if config.model.dtype == "auto" and device == "cuda":
        return "bfloat16"
    return str(compute_dtype(config.model.dtype, device)).removeprefix("torch.")
