"""Low-rank adapters through peft: W·x + (alpha / rank)·B·A·x, B zero at first (Hu et al. 2021).

So step 0 is the base model. The base's weights are frozen; which biases train is `bias`.
peft is imported where it is used: it takes a second, and most runs have no adapters.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def add_lora(
    backbone: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    bias: str = "none",
    targets: Sequence[str] = (),
    dropout: float = 0.0,
) -> Any:
    """`backbone` with adapters on its linear layers, or on those named in `targets`.

    Raises ValueError for a rank below 1, and where a name fits no layer.
    """
    from peft import LoraConfig, get_peft_model

    if rank < 1:
        raise ValueError(f"rm.lora.rank is {rank}; adapters have a rank of 1 at least (usual: 8)")
    linear = {
        name.rpartition(".")[2]
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    if unknown := sorted(set(targets) - linear):
        raise ValueError(
            f"rm.lora.targets names {', '.join(unknown)}, and {type(backbone).__name__} has the "
            f"linear layers {', '.join(sorted(linear))}: name some of these, or none for all"
        )
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        bias=bias,
        target_modules=list(targets) or "all-linear",
        lora_dropout=dropout,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in backbone.modules()),
    )
    return get_peft_model(backbone, settings)


def load_adapter(backbone: PreTrainedModel, path: str | Path) -> Any:
    """`backbone` with the adapters that `save_pretrained` of `add_lora`'s model wrote to `path`."""
    from peft import PeftModel

    return PeftModel.from_pretrained(backbone, str(path))


def has_adapter(backbone: nn.Module) -> bool:
    """Whether adapters stand beside the weights."""
    return hasattr(backbone, "peft_config")


def merged(backbone: Any) -> PreTrainedModel:
    """A plain model whose weights have the adapters in them; without adapters the model itself."""
    return copy.deepcopy(backbone).merge_and_unload() if has_adapter(backbone) else backbone
