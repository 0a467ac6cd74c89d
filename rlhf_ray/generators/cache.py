"""Memory for an engine's keys and values, where the user leaves it open."""

from typing import Any

import torch
from transformers import PretrainedConfig

from rlhf_ray.models.device import device_here, gpus_given
from rlhf_ray.models.loading import load_config

BLOCK_SIZE = 32  # tokens of a cache block; vLLM's default of 128 on a CPU would hide stale prefixes
CPU_MB = 256
PART_OF_GPU = 0.5  # the weights, and what a step computes, need the rest


def default_cache_mb(
    model_path: str,
    *,
    dtype: str = "float32",
    max_model_len: int,
    max_num_seqs: int = 128,
    tensor_parallel: int = 1,
    trust_remote_code: bool = False,
    **_: Any,
) -> int:
    """MB of each GPU, or of the host, for an engine of these options, in this process."""
    if device_here() == "cpu":
        return CPU_MB
    config = load_config(model_path, trust_remote_code=trust_remote_code)
    part = min(1.0, gpus_given() or 1.0)
    return cache_mb(
        token_bytes(config, itemsize=getattr(torch, dtype).itemsize, gpus=tensor_parallel),
        rows=max_num_seqs,
        tokens=max_model_len,
        gpu_bytes=int(torch.cuda.get_device_properties(0).total_memory * part),
    )


def cache_mb(token_bytes: int, *, rows: int, tokens: int, gpu_bytes: int) -> int:
    """MB for `rows` responses at once, each of `tokens` tokens with its prompt.

    At most half of `gpu_bytes`, what the process was given of a GPU, but never less than one row:
    with less than it wants the engine takes rows in as others finish.
    """
    blocks_a_row = -(-tokens // BLOCK_SIZE)
    block = BLOCK_SIZE * token_bytes
    least, wanted = ((n * blocks_a_row + 1) * block for n in (1, rows))  # vLLM keeps a block empty
    return -(-max(least, min(wanted, int(PART_OF_GPU * gpu_bytes))) // (1 << 20))


def token_bytes(config: PretrainedConfig, *, itemsize: int, gpus: int = 1) -> int:
    """Keys and values of one token on each of `gpus`, among which the heads are divided.

    As if every layer attended to all tokens: of a model with windows or states it is less.
    """
    config = config.get_text_config()
    queries = config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or queries
    size = getattr(config, "head_dim", None) or config.hidden_size // queries
    return 2 * config.num_hidden_layers * -(-heads // gpus) * size * itemsize
