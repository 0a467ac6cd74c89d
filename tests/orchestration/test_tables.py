"""What a learner rank takes of the rollouts that it fetched."""

import pyarrow as pa

from rlhf_ray.actors.tables import without_singles


def test_rows_that_are_alone_of_their_prompt_are_left_out() -> None:
    table = pa.table({"rollout_id": [1, 2, 3, 4, 5, 6], "prompt_id": [7, 7, 8, 9, 9, 9]})
    assert without_singles(table).column("rollout_id").to_pylist() == [1, 2, 4, 5, 6]


def test_whole_groups_stay() -> None:
    table = pa.table({"rollout_id": [1, 2, 3, 4], "prompt_id": [8, 7, 8, 7]})
    assert without_singles(table) == table
