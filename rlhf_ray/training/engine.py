"""What a run's generators are made of: what its config and its policy say of their engines."""

from transformers import PretrainedConfig

from rlhf_ray.actors.generator import GeneratorSpec
from rlhf_ray.config import Config
from rlhf_ray.generators.protocol import Sampling
from rlhf_ray.models.loading import (
    compute_dtype,
    end_token_ids,
    load_config,
    load_tokenizer,
    positions_of,
)


def generator_spec(config: Config, policy: str, device: str) -> GeneratorSpec:
    """Of generators on `device` that begin as `policy`, by path or name.

    Raises ValueError where the model takes fewer tokens than the longest prompt and response.
    """
    rollout, trust = config.rollout, config.model.trust_remote_code
    check_context(config, load_config(policy, trust_remote_code=trust), f"the model at {policy}")
    tokenizer = load_tokenizer(policy, trust_remote_code=trust)
    ends = end_token_ids(policy, tokenizer, trust_remote_code=trust)
    return GeneratorSpec(
        backend=rollout.backend,
        model_path=policy,
        sampling=Sampling(
            rollout.temperature, rollout.max_response_tokens, ends, rollout.ignore_eos
        ),
        dtype=weights_dtype(config, device),
        kv_cache_mb=rollout.kv_cache_mb,
        max_model_len=config.data.max_prompt_tokens + rollout.max_response_tokens,
        max_in_flight=rollout.max_in_flight,
        run_seed=config.run.seed,
        start_timeout=config.cluster.start_timeout_s,
        trust_remote_code=trust,
        run=config.run.name,
        tensor_parallel=rollout.tensor_parallel,
        sleeps=rollout.sleep,
        eager=rollout.eager,
        weights_by=config.cluster.weights_by,
    )


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
