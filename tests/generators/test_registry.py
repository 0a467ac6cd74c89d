"""What a backend's engine cannot do is refused before it is built."""

import pytest

from rlhf_ray.generators.registry import BACKENDS


def test_transformers_on_several_devices_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensor_parallel 2 is for rollout\.backend vllm"):
        BACKENDS["transformers"].make("no/such/model", tensor_parallel=2)
