"""The generator backends: to add one, write one file and give it a row here."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_ray.generators.environment import torch_environment, vllm_environment

if TYPE_CHECKING:  # an engine's environment must be set before torch is imported
    from rlhf_ray.generators.protocol import Generator


@dataclass(frozen=True, slots=True)
class Backend:
    """make(model_path, **options) builds the engine; environment(threads) is for its process."""

    make: "Callable[..., Generator]"
    environment: Callable[[int], dict[str, str]]


def _vllm(*args: Any, **options: Any) -> "Generator":
    gc.disable()  # importing makes a million objects that stay: looking through them took 3 of 11 s
    try:
        from rlhf_ray.generators.vllm_engine import VLLMGenerator

        gc.freeze()
        return VLLMGenerator(*args, **options)
    finally:
        gc.enable()


def _transformers(
    *args: Any,
    metrics_as: str | None = None,
    tensor_parallel: int = 1,
    sleeps: bool = False,
    takes_ipc: bool = False,
    **options: Any,
) -> "Generator":
    """It has no metrics of its own, is of one device, never sleeps, and copies its weights."""
    if tensor_parallel > 1:
        raise ValueError(
            f"rollout.tensor_parallel {tensor_parallel} is for rollout.backend vllm: transformers "
            f"runs on one device"
        )
    from rlhf_ray.generators.transformers_engine import TransformersGenerator

    return TransformersGenerator(*args, **options)


BACKENDS = {
    "vllm": Backend(_vllm, vllm_environment),
    "transformers": Backend(_transformers, torch_environment),
}
