"""What a version must consist of: all that trains, and of what does not, what it likes."""

import pytest
import torch

from rlhf_ray.generators.checkpoint_names import CheckpointNames
from rlhf_ray.generators.ipc_update import checked
from rlhf_ray.generators.state import StateLayout
from tests.generators.test_checkpoint_names import model_of

LAYOUT = StateLayout("gemma4", {"w": (2,), "scalar": (1,)}, (), frozenset({"scalar"}))
W, SCALAR = torch.ones(2), torch.ones(1)


def test_what_no_training_moves_may_come_and_need_not() -> None:
    assert LAYOUT.complete([("w", W)]).keys() == {"w"}
    assert LAYOUT.complete([("scalar", SCALAR), ("w", W)]).keys() == {"scalar", "w"}
    update = {"names": ["w"], "dtype_names": ["float32"], "shapes": [[2]], "ipc_handles": [{}]}
    assert checked(update, LAYOUT, CheckpointNames(model_of("llama"))) == update


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"scalar": SCALAR}, r"lacks 1 of the model's 2 tensors, the first: \['w'\]"),
        ({"w": W, "scalar": W}, r"tensor scalar .* is \(2,\), the model has \(1,\)"),
        ({"w": W, "other": W}, r"1 tensors .* are none of the model's, the first: \['other'\]"),
    ],
)
def test_what_trains_must_come_and_all_must_fit(given: dict[str, torch.Tensor], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        LAYOUT.complete(given.items())
