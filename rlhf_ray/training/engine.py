"""What an engine needs to know of a run and its policy: longest row, type of the weights."""

from rlhf_ray.config import Config
from rlhf_ray.models.loading import compute_dtype, load_config


def context_tokens(config: Config, policy: str) -> int:
    """Tokens of the longest prompt and response. ValueError where the model takes fewer."""
    asked = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    model = load_config(policy, trust_remote_code=config.model.trust_remote_code)
    room = getattr(model, "max_position_embeddings", None)
    if room is not None and asked > room:
        raise ValueError(
            f"data.max_prompt_tokens {config.data.max_prompt_tokens} and "
            f"rollout.max_response_tokens {config.rollout.max_response_tokens} make {asked}, "
            f"and the model at {policy} takes {room}: lower one of the two"
        )
    return asked


def weights_dtype(config: Config, device: str) -> str:
    """Without a wish of the user's: what the learner computes in."""
    if config.rollout.dtype != "auto":
        return config.rollout.dtype
    return str(compute_dtype(config.model.dtype, device)).removeprefix("torch.")
