"""A version as a checkpoint has it: what vLLM's loaders know are the names and shapes of its files.

transformers computes with others in some models: with the experts of a layer as one tensor, or with
modules named anew. Its own `save_pretrained` takes the same way back.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

Named = tuple[str, Tensor]


class CheckpointNames:
    """The way back, a tensor at a time: what it makes of one does not depend on the others.

    model: of the class and config, on any device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        state = model.state_dict()
        self._others = {name for name, tensor in state.items() if not self._is_itself(name, tensor)}

    def of(self, state: Iterable[Named]) -> Iterator[Named]:
        """(name, tensor) as in a checkpoint; several for one that holds several."""
        for name, tensor in state:
            yield from self._back(name, tensor) if name in self._others else [(name, tensor)]

    def _is_itself(self, name: str, tensor: Tensor) -> bool:
        return [(found, x.shape) for found, x in self._back(name, tensor)] == [(name, tensor.shape)]

    def _back(self, name: str, tensor: Tensor) -> list[Named]:
        return list(revert_weight_conversion(self._model, {name: tensor}).items())
