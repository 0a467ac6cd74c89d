"""What a learner rank takes of the rollouts that it fetched, and what it says of those missing."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pytest
import ray

from rlhf_ray.actors import tables
from rlhf_ray.actors.tables import without_singles
from rlhf_ray.data.ids import Version
from rlhf_ray.data.schemas import score_columns
from rlhf_ray.weights import object_store
from rlhf_ray.weights.buckets import Manifest


def test_rows_that_are_alone_of_their_prompt_are_left_out() -> None:
    table = pa.table({"rollout_id": [1, 2, 3, 4, 5, 6], "prompt_id": [7, 7, 8, 9, 9, 9]})
    assert without_singles(table).column("rollout_id").to_pylist() == [1, 2, 4, 5, 6]


def test_whole_groups_stay() -> None:
    table = pa.table({"rollout_id": [1, 2, 3, 4], "prompt_id": [8, 7, 8, 7]})
    assert without_singles(table) == table


def shard(ids: Sequence[int], valid: Sequence[bool]) -> tuple[ray.ObjectRef, ...]:
    """Rollouts and their scores, a tenth of their ids."""
    score = {"score": np.array(ids) / 10, "score_valid": np.array(valid)}
    return ray.put(pa.table({"rollout_id": ids})), ray.put(score_columns(pa.array(ids), score))


def test_shards_are_one_table_without_the_rows_that_a_reward_dropped(joined: None) -> None:
    found = tables.fetch([shard([9, 1], [True, True]), shard([5, 2], [True, False])])
    assert found.column("rollout_id").to_pylist() == [1, 5, 9]
    assert found.column("score").to_pylist() == pytest.approx([0.1, 0.5, 0.9])


@pytest.fixture
def never(joined: None) -> Iterator[ray.ObjectRef]:
    """What does not arrive: no node has what it takes."""
    ref = ray.remote(resources={"nowhere": 1})(lambda: None).remote()
    yield ref
    ray.cancel(ref)


def test_a_table_that_does_not_arrive(never: ray.ObjectRef, monkeypatch) -> None:
    monkeypatch.setattr(tables, "FETCH_TIMEOUT", 0.1)
    with pytest.raises(TimeoutError, match=r"not all of 3 tables of rollouts arrived .* network"):
        tables.fetch([shard([1], [True]), (never,)])


def test_a_version_that_does_not_arrive(never: ray.ObjectRef, monkeypatch) -> None:
    monkeypatch.setattr(object_store, "PULL_TIMEOUT", 0.1)
    manifest = Manifest(Version(0, 7), "float32", (), (1200,), (0,), ())
    with pytest.raises(TimeoutError, match=r"1,200 bytes of version .* did not arrive .* network"):
        object_store.fetch(manifest, [never])
