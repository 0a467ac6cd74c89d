"""The generator backends: to add one, write one file and give it a row here."""

import gc
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_ray.generators.environment import torch_environment, vllm_environment

if TYPE_CHECKING:  # an engine's environment must be set before torch is imported
    from rlhf_ray.generators.protocol import Generator


@dataclass(frozen=True, slots=True)
class Backend:
    """One kind of engine.

    make(model_path, **options): builds it; without `kv_cache_mb` it has `cache.default_cache_mb`.
    environment(threads): of its process. package: what has to be installed for it.
    """

    make: "Callable[..., Generator]"
    environment: Callable[[int], dict[str, str]]
    package: str


def check_installed(name: str) -> None:
    """Raise ValueError where this environment lacks what the backend `name` needs."""
    package = BACKENDS[name].package
    if importlib.util.find_spec(package) is not None:
        return
    others = [other for other, row in BACKENDS.items() if importlib.util.find_spec(row.package)]
    raise ValueError(
        f"--rollout.backend is {name}, and the package {package} is not installed: install the "
        f"extra that has it (cpu or gpu), or give --rollout.backend {' or '.join(others)}"
    )


def _vllm(model_path: str, *, kv_cache_mb: int | None = None, **options: Any) -> "Generator":
    from rlhf_ray.generators.vllm_engine import VLLMGenerator

    gc.freeze()  # what it imported stays: the collector need not look through it again
    cache = _cache_mb(model_path, kv_cache_mb, options)
    return VLLMGenerator(model_path, kv_cache_mb=cache, **options)


def _transformers(
    model_path: str,
    *,
    kv_cache_mb: int | None = None,
    metrics_as: str | None = None,
    tensor_parallel: int = 1,
    sleeps: bool = False,
    takes_ipc: bool = False,
    eager: bool = False,
    **options: Any,
) -> "Generator":
    """Options that only vLLM has are ignored, but for `tensor_parallel`, which is refused."""
    if tensor_parallel > 1:
        raise ValueError(
            f"rollout.tensor_parallel {tensor_parallel} is for rollout.backend vllm: transformers "
            f"runs on one device"
        )
    from rlhf_ray.generators.transformers_engine import TransformersGenerator

    cache = _cache_mb(model_path, kv_cache_mb, options)
    return TransformersGenerator(model_path, kv_cache_mb=cache, **options)


def _cache_mb(model_path: str, given: int | None, options: dict[str, Any]) -> int:
    from rlhf_ray.generators.cache import default_cache_mb

    return default_cache_mb(model_path, **options) if given is None else given


BACKENDS = {
    "vllm": Backend(_vllm, vllm_environment, "vllm"),
    "transformers": Backend(_transformers, torch_environment, "transformers"),
}
