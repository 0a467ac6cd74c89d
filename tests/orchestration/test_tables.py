"""What a learner rank takes of the rollouts that it fetched, and what it says of those missing."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.exceptions import ObjectLostError

from rlhf_ray.actors import tables
from rlhf_ray.actors.learner import LearnerActor, LearnerSpec
from rlhf_ray.actors.tables import without_singles
from rlhf_ray.config import PPO
from rlhf_ray.data.ids import Version
from rlhf_ray.data.schemas import score_columns
from rlhf_ray.weights import object_store
from rlhf_ray.weights.buckets import Manifest
from rlhf_ray.weights.object_store import VersionGone
from tests.running.jobs import wait_for


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


class Owner:
    """What it puts into the object store goes with it, and what it never answers as well."""

    def put(self) -> list[ray.ObjectRef]:
        return [ray.put(np.zeros(1 << 20))]

    def hang(self) -> None:
        time.sleep(600)


@dataclass
class Lost:
    """Of a process that has died. stored: what it had stored. owed: what it had yet to answer."""

    stored: ray.ObjectRef
    owed: ray.ObjectRef


@pytest.fixture(scope="module")
def lost(joined: None) -> Lost:
    owner = ray.remote(Owner).options(num_cpus=0).remote()
    (stored,) = ray.get(owner.put.remote())
    found = Lost(stored, owner.hang.remote())
    ray.kill(owner)

    def is_gone() -> bool:
        try:
            ray.get(stored, timeout=30)
        except ObjectLostError:
            return True
        return False

    wait_for(is_gone, why="an object outlives its owner")
    return found


def test_shards_that_are_gone_are_named_by_their_places(lost: Lost) -> None:
    shards = [shard([i], [True]) for i in (1, 2, 3)]
    shards[1] = (lost.stored, shards[1][1])
    with pytest.raises(ObjectLostError):
        tables.fetch(shards)
    assert tables.gone(shards) == [1]


def learner_actor(estimator: Literal["gae", "rloo"]) -> LearnerActor:
    """In this process, without its learner."""
    samples = 1 if estimator == "gae" else 2
    ppo = PPO(prompts=8, samples=samples, epochs=1, minibatches=1, estimator=estimator)
    return LearnerActor(0, 1, LearnerSpec(ppo, "", None, "float32", "float32", 1.0, 0, ()))


def test_a_rank_says_which_shards_are_gone_and_takes_the_others_later(lost: Lost) -> None:
    actor, shards = learner_actor("gae"), [shard([4], [True]), shard([2], [True])]
    assert actor.fetch([*shards, (lost.stored, shards[0][1])]) == [2]
    assert actor._table is None
    assert actor.fetch(shards) == []
    assert actor._table is not None
    assert actor._table.column("rollout_id").to_pylist() == [2, 4]


@pytest.mark.parametrize(("estimator", "left"), [("gae", [1, 2, 3]), ("rloo", [1, 2])])
def test_a_rank_leaves_out_what_has_lost_its_group(
    joined: None, estimator: Literal["gae", "rloo"], left: list[int]
) -> None:
    ids, valid = [1, 2, 3, 4], [True, True, True, False]
    rollouts = pa.table({"rollout_id": ids, "prompt_id": [7, 7, 8, 8]})
    actor = learner_actor(estimator)
    assert actor.fetch([(ray.put(rollouts), shard(ids, valid)[1])]) == []
    assert actor._table is not None and actor._table.column("rollout_id").to_pylist() == left


MANIFEST = Manifest(Version(0, 7), "float32", (), (1200,), (0,), ())


@pytest.mark.parametrize("kind", ["stored", "owed"])
def test_a_version_is_gone_with_the_learner_that_made_it(lost: Lost, kind: str) -> None:
    """Also one that had yet to give away what it had packed."""
    with pytest.raises(VersionGone, match=r"version 0\.7 is gone"):
        object_store.fetch(MANIFEST, [ray.put(np.zeros(9)), getattr(lost, kind)], timeout=30)


def test_a_version_that_does_not_arrive(never: ray.ObjectRef) -> None:
    said = r"1,200 bytes of version .* did not arrive .* network.* --cluster\.start-timeout-s$"
    with pytest.raises(TimeoutError, match=said):
        object_store.fetch(MANIFEST, [never], timeout=0.1)
