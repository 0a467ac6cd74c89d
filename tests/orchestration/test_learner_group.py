"""What the learner group takes for its loss, in a simulated world."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError

from rlhf_ray.orchestration.learners import Deadlines, LearnerGroup, LearnersLost, Rank
from rlhf_ray.orchestration.reactor import Reactor
from rlhf_ray.simulation.world import World


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


def test_what_is_wrong_with_the_numbers_is_no_loss() -> None:
    with pytest.raises(FloatingPointError, match="NaN"):
        group_of_one(FloatingPointError("loss is NaN")).update(0)
