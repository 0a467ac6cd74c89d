"""An update that is not the model's is refused before anything of it is loaded."""

from typing import Any

import pytest

from rlhf_ray.generators.checkpoint_names import CheckpointNames
from rlhf_ray.generators.ipc_update import checked
from rlhf_ray.generators.state import StateLayout, state_layout
from tests.generators.test_checkpoint_names import model_of

LAYOUT = StateLayout(
    "bloom",
    {"embed": (4, 2), "norm": (2,), "lm_head.weight": (4, 2)},
    (("embed", "lm_head.weight"),),
)

NAMES = CheckpointNames(model_of("bloom"))


def update(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {
        "names": list(shapes),
        "dtype_names": ["bfloat16"] * len(shapes),
        "shapes": [list(shape) for shape in shapes.values()],
        "ipc_handles": [{"gpu": (name,)} for name in shapes],
    }


def test_a_whole_update_is_as_it_came_with_the_tied_tensor_under_both_names() -> None:
    done = checked(update(norm=(2,), embed=(4, 2)), LAYOUT, NAMES)
    assert done["names"] == ["norm", "embed", "lm_head.weight"]
    assert done["ipc_handles"] == [{"gpu": (name,)} for name in ("norm", "embed", "embed")]
    assert done["shapes"] == [[2], [4, 2], [4, 2]] and done["dtype_names"] == ["bfloat16"] * 3


def test_what_the_loader_refuses_is_left_out() -> None:
    given = update(**LAYOUT.shapes)
    done = checked(given, LAYOUT, NAMES, without={"lm_head.weight"})
    assert done["names"] == ["embed", "norm"] and len(done["ipc_handles"]) == 2
    assert len(given["names"]) == 3, "what was given stays as it is"


@pytest.mark.parametrize(
    ("shapes", "fault"),
    [
        ({"embed": (4, 2)}, "lacks 1 of the model's 3"),
        ({"embed": (4, 2), "norm": (3,)}, r"tensor norm .* is \(3,\), the model has \(2,\)"),
        ({"embed": (4, 2), "norm": (2,), "other": (1,)}, "none of the model's"),
    ],
)
def test_other_tensors_are_refused(shapes: dict[str, tuple[int, ...]], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        checked(update(**shapes), LAYOUT, NAMES)


def test_experts_that_are_one_tensor_are_refused() -> None:
    model = model_of("mixtral")
    layout = state_layout(model)
    with pytest.raises(ValueError, match=r"experts.* is 8 tensors of a checkpoint.* cuda_ipc out"):
        checked(update(**layout.shapes), layout, CheckpointNames(model))
