"""What the learner group takes for its loss, in a simulated world; what it publishes, on Ray."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from rlhf_ray.data.ids import Version
from rlhf_ray.orchestration.learners import Deadlines, LearnerGroup, LearnersLost, Rank
from rlhf_ray.orchestration.reactor import Reactor
from rlhf_ray.simulation.world import World
from rlhf_ray.weights.buckets import Manifest


def group_of_one(error: Exception) -> LearnerGroup:
    """One rank, whose update ends with `error` a second after it was asked for."""
    world = World()
    nothing: Any = None
    group = LearnerGroup(
        Reactor(clock=world.clock, wait=world.wait, get=world.get),
        nothing,
        nothing,
        ranks=1,
        threads=1,
        run="run",
        deadlines=Deadlines(start=60.0, update=60.0, silent=60.0),
        log=lambda _: None,
    )
    update = SimpleNamespace(remote=lambda step: world.later(1.0, error=error))
    group._ranks = [Rank("learner-0", SimpleNamespace(update=update))]
    return group


@pytest.mark.parametrize("error", [RayActorError(), OutOfMemoryError("killed by the monitor")])
def test_a_rank_that_died_or_was_killed_for_its_memory_is_lost(error: Exception) -> None:
    with pytest.raises(LearnersLost, match="lost in `update`"):
        group_of_one(error).update(0)


class Packs:
    """Gives away as many objects as the version's step says, each its own number."""

    def pack(self, version: Version) -> Manifest:
        self._count = version.step
        ones = (1,) * version.step
        return Manifest(version, "float32", (), ones, ones, ())

    def take_objects(self) -> Any:
        return tuple(range(self._count)) if self._count > 1 else 0


def test_a_version_is_published_with_a_reference_to_each_of_its_objects(joined: None) -> None:
    actor = ray.remote(Packs).options(num_cpus=0).remote()
    group = group_of_one(RayActorError())
    group._reactor, group._ranks = Reactor(), [Rank("learner-0", actor)]
    for count in (1, 3):
        published = group.publish(Version(0, count))
        assert ray.get(list(published.buckets)) == list(range(count))
        assert (published.bytes, group.version) == (count, Version(0, count))
    ray.kill(actor)


def test_what_any_rank_cannot_fetch_is_gone() -> None:
    world = World()
    group = group_of_one(RayActorError())
    group._reactor = Reactor(clock=world.clock, wait=world.wait, get=world.get)

    def rank(name: str, lost: list[int]) -> Rank:
        return Rank(name, SimpleNamespace(fetch=SimpleNamespace(remote=later(lost))))

    def later(lost: list[int]) -> Any:
        return lambda shards: world.later(0.1, value=lost)

    group._ranks = [rank("learner-0", [1]), rank("learner-1", [3, 1])]
    assert group.fetch([]) == [1, 3]


def test_an_idle_group_whose_version_is_gone_is_lost() -> None:
    """Nobody could load another: they make none before rollouts of this one are there."""
    group = group_of_one(RayActorError())
    group.version = Version(0, 3)
    group.gone(Version(0, 2))
    group._doing = "update"
    group.gone(Version(0, 3))
    group._doing = ""
    with pytest.raises(LearnersLost, match=r"version 0\.3 is gone"):
        group.gone(Version(0, 3))


def test_what_is_wrong_with_the_numbers_is_no_loss() -> None:
    with pytest.raises(FloatingPointError, match="NaN"):
        group_of_one(FloatingPointError("loss is NaN")).update(0)
