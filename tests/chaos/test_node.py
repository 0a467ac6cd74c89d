"""A node dies with everything on it: all roles are made anew elsewhere, and nothing is lost."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.running import IMPATIENT, check, notes, start_struck
from tests.chaos.strikes import STOP, Strike
from tests.running.jobs import STEPS, TINY, fingerprint, wait_for
from tests.running.nodes import kill, several_nodes

Make = Callable[[str], tuple[Path, tuple[str, ...]]]


# A generator that is stopped, and not missed for a while, leaves the learner idle.
WAITING = Strike("generator", "generator generates", 12, STOP, delay=0.005)
PATIENT = ("--cluster.heartbeat-timeout-s=60", "--cluster.shard-timeout-s=100")


@pytest.mark.slow
@pytest.mark.parametrize("idle", [False, True], ids=["at any time", "while the learner idles"])
def test_a_node_killed_with_everything_on_it(undisturbed: str, new_run: Make, idle: bool):
    run, place = new_run("struck")
    with several_nodes() as nodes:
        first = nodes.add(cpus=2)
        flags = (*place, *TINY, *(PATIENT if idle else IMPATIENT), f"--ppo.iterations={STEPS}")
        driver = start_struck(run, [WAITING] if idle else [], flags)
        wait_for(lambda: notes(run, "struck") if idle else len(notes(run, "consumed")) > 3)
        nodes.add(cpus=2, waits=False)  # seconds, in which the run would end
        kill(first)
        assert driver.wait(timeout=240) == 0, (run / "log").read_text()[-3000:]
        check(run, STEPS)
    assert fingerprint(run) == undisturbed
    events = (run / "events.log").read_text()
    assert "going back to the last checkpoint" in events
    assert "its shards go to others" in events
    assert not idle or "died while idle" in events
