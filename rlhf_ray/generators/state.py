"""What a new version must consist of: names, shapes and ties, checked before a load."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


@dataclass(frozen=True, slots=True)
class StateLayout:
    """shapes: of every tensor by name; ties: groups of names that are one tensor.

    fixed: names of what no training moves, buffers and frozen parameters. A version may lack them,
    and an engine keeps the checkpoint's: published in bfloat16, the biases of a router, which
    engines hold in float32, would send tokens to other experts.
    """

    model_type: str
    shapes: Mapping[str, tuple[int, ...]]
    ties: tuple[tuple[str, ...], ...]
    fixed: frozenset[str] = frozenset()

    def complete(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """All tensors of a version by name, tied ones under each of their names.

        Fixed ones only where they were sent. Raises ValueError, naming them, where others are
        missing, or any are unknown or of another shape.
        """
        given = dict(tensors)
        unknown = sorted(given.keys() - self.shapes.keys())
        if unknown:
            raise ValueError(
                f"{len(unknown)} tensors of the new version are none of the model's, the first: "
                f"{unknown[:3]}: learner and generators must load the same architecture"
            )
        for names in self.ties:
            sent = next((given[name] for name in names if name in given), None)
            if sent is not None:
                given.update((name, sent) for name in names if name not in given)
        missing = [name for name in self.shapes if name not in given and name not in self.fixed]
        if missing:
            raise ValueError(
                f"the new version lacks {len(missing)} of the model's {len(self.shapes)} tensors, "
                f"the first: {missing[:3]}: a load replaces all weights, so send all of them"
            )
        for name, tensor in given.items():
            if tuple(tensor.shape) != self.shapes[name]:
                raise ValueError(
                    f"tensor {name} of the new version is {tuple(tensor.shape)}, the model has "
                    f"{self.shapes[name]}: learner and generators must load the same architecture"
                )
        return given


def without_weights(model_path: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal LM at `model_path`, from its config alone: on the meta device."""
    config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def state_layout(model: PreTrainedModel) -> StateLayout:
    """What a version of `model` consists of."""
    names_of_tensor: dict[int, list[str]] = defaultdict(list)
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        names_of_tensor[id(tensor)].append(name)
    return StateLayout(
        model_type=model.config.model_type,
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        ties=tuple(tuple(names) for names in names_of_tensor.values() if len(names) > 1),
        fixed=frozenset(name for name, tensor in state.items() if not tensor.requires_grad),
    )
