"""The type of the generators' weights, decided where there may be no GPU."""

import pytest
import torch

from rlhf_ray.config import Config, Model, Rollout
from rlhf_ray.models.loading import compute_dtype
from rlhf_ray.training.engine import weights_dtype


def test_of_learners_on_gpus_it_is_bfloat16_whatever_this_node_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(**_: object) -> bool:
        raise AssertionError("this node's GPU was asked, and another's is meant")

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", asked)
    assert weights_dtype(Config(), "cuda") == "bfloat16"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_asked_for_is_obeyed(device: str) -> None:
    assert weights_dtype(Config(model=Model(dtype="float32")), device) == "float32"
    assert weights_dtype(Config(model=Model(dtype="bfloat16")), device) == "bfloat16"
    own = Config(model=Model(dtype="bfloat16"), rollout=Rollout(dtype="float32"))
    assert weights_dtype(own, device) == "float32"


def test_on_cpus_it_is_what_this_node_multiplies() -> None:
    assert f"torch.{weights_dtype(Config(), 'cpu')}" == str(compute_dtype("auto", "cpu"))
