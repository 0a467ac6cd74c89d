"""The way back to a checkpoint's names, a tensor at a time, against what transformers writes."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_ray.generators.checkpoint_names import CheckpointNames
from rlhf_ray.generators.state import without_weights
from tests.contracts import models


def model_of(shape: str) -> PreTrainedModel:
    """Of a shape of the contract, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(models.CONFIGS[shape]))


@pytest.mark.parametrize("shape", ["mixtral", "qwen3_moe", "llama", "gpt2"])
def test_it_is_what_save_pretrained_writes(shape: str, tmp_path: Path) -> None:
    made = models.make(shape, tmp_path, seed=0)
    names = CheckpointNames(without_weights(str(tmp_path)))
    found = dict(names.of(made.named_parameters()))
    written = load_file(tmp_path / "model.safetensors")
    assert found.keys() == written.keys()
    for name, tensor in written.items():
        assert torch.equal(found[name], tensor), name


def test_what_is_as_in_the_file_is_passed_on_itself() -> None:
    names = CheckpointNames(model_of("qwen2"))
    tensor = torch.zeros(2)
    ((name, found),) = names.of([("model.norm.weight", tensor)])
    assert name == "model.norm.weight" and found is tensor
