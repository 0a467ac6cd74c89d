"""Real faults in real runs: kill −9 and SIGSTOP, and each run ends as if nothing had been."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.running import IMPATIENT, all_struck, check, run_struck
from tests.chaos.strikes import DRIVER, EACH_CLASS, KILL, MATRIX, STOP, Strike, drawn, learner
from tests.running.fixtures import undisturbed_run
from tests.running.interrupted import Interrupted
from tests.running.jobs import STEPS, TINY, fingerprint, rows, start, succeed, wait_for

Make = Callable[[str], tuple[Path, tuple[str, ...]]]
FLAGS = (*TINY, *IMPATIENT, f"--ppo.iterations={STEPS}")
SCHEDULES = 5  # in one run, one after the other
FIRST_SEED = int(os.environ.get("CHAOS_SEED", "0"))
LONG = (*TINY, *IMPATIENT, f"--ppo.iterations={SCHEDULES * STEPS}")


@pytest.mark.short
def test_each_class_of_failure_in_one_run(interrupted: Interrupted, new_run: Make):
    run, place = new_run("struck")
    run_struck(run, place, FLAGS, EACH_CLASS, limit=240)
    all_struck(run, EACH_CLASS)
    check(run, STEPS)
    assert fingerprint(run) == fingerprint(interrupted.directory)
    events = (run / "events.log").read_text()
    assert "its shards go to others" in events
    assert "going back to the last checkpoint" in events
    assert "silent for" in events


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MATRIX))
def test_each_role_in_each_state(undisturbed: str, new_run: Make, name: str):
    run, place = new_run("struck")
    run_struck(run, place, FLAGS, MATRIX[name], limit=350)
    all_struck(run, MATRIX[name])
    check(run, STEPS)
    assert fingerprint(run) == undisturbed


@pytest.fixture(scope="module")
def undisturbed_long(base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """As `undisturbed`, of a run as long as five schedules."""
    return undisturbed_run(base, tmp_path_factory.mktemp("long"), LONG)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 20, SCHEDULES))
def test_any_schedules_of_faults(undisturbed_long: str, new_run: Make, seed: int):
    strikes = [s for i in range(SCHEDULES) for s in drawn(seed + i, i * STEPS, STEPS)]
    print(f"CHAOS_SEED={seed}: {strikes}")
    run, place = new_run("struck")
    run_struck(run, place, LONG, strikes, limit=800)
    all_struck(run, strikes)
    check(run, SCHEDULES * STEPS)
    assert fingerprint(run) == undisturbed_long


@pytest.mark.slow
def test_either_rank_of_two_killed(base: Path, new_run: Make):
    two = (*FLAGS, "--cluster.learners=2")
    calm, place = new_run("calm")
    succeed("ppo", *place, *two)
    run, place = new_run("struck")
    strikes = [*learner(KILL, which=0)[:2], *learner(KILL, which=1)[2:]]
    run_struck(run, place, two, strikes, limit=350)
    all_struck(run, strikes)
    check(run, STEPS)
    assert fingerprint(run) == fingerprint(calm)


@pytest.mark.slow
def test_struck_between_checkpoints_and_evaluations_some_steps_apart(
    undisturbed: str, new_run: Make
):
    strikes = [
        Strike("learner", "learner updates", 7, part_of_update=0.5),
        Strike("generator", "generator generates", 50, delay=0.005),
        Strike("learner", "learner publishes", 15),
        Strike(DRIVER, "learner updates", 22, part_of_update=0.5),
    ]
    run, place = new_run("struck")
    apart = ("--checkpoint.every=4", "--evaluate.every=4")
    run_struck(run, place, (*FLAGS, *apart), strikes, limit=350)
    all_struck(run, strikes)
    check(run, STEPS)
    assert fingerprint(run) == undisturbed
    evaluated = [path.stem for path in sorted((run / "evaluations").iterdir())]
    assert evaluated == [f"step-{step:06d}" for step in range(0, STEPS + 1, 4)]


@pytest.mark.slow
def test_a_driver_that_stood_still_takes_nobody_for_dead(undisturbed: str, new_run: Make):
    """As on a machine that was paused: longer than anybody may be silent."""
    run, place = new_run("stopped")
    driver = start("ppo", *place, *FLAGS, log=run / "log")
    try:
        wait_for(lambda: list(run.glob("checkpoints/step-*")), why=(run / "log").read_text)
        driver.send_signal(signal.SIGSTOP)
        time.sleep(20)
        driver.send_signal(signal.SIGCONT)
        assert driver.wait(timeout=120) == 0
    finally:
        driver.kill()
    assert "silent" not in (run / "log").read_text()
    assert [row["generators/restarts"] for row in rows(run)[1:]] == [0.0] * STEPS
    assert fingerprint(run) == undisturbed


@pytest.mark.slow
def test_a_separate_critic_begins_again_as_it_began(new_run: Make):
    """Killed before the first checkpoint: the critic is built from the reward model once more.

    And the group that has it is told the run's calibration once more.
    """
    apart = (*FLAGS, "--ppo.critic=separate", "--checkpoint.every=1000")
    calm, place = new_run("calm")
    succeed("ppo", *place, *apart)
    run, place = new_run("struck")
    strikes = [Strike("learner", "learner updates", 3, part_of_update=0.5)]
    run_struck(run, place, apart, strikes, limit=350)
    all_struck(run, strikes)
    check(run, STEPS)
    assert fingerprint(run) == fingerprint(calm)


@pytest.mark.slow
def test_running_ahead_struck(new_run: Make):
    strikes = [
        Strike("generator", "generator generates", 13, KILL, delay=0.005),
        Strike("learner", "learner updates", 8, KILL, part_of_update=0.5),
        Strike("reward", "scorer scores", 90, KILL, delay=0.002),
        Strike("generator", "generator generates", 65, STOP, delay=0.005),
        Strike(DRIVER, "learner updates", 21, delay=0.1),
    ]
    run, place = new_run("struck")
    run_struck(run, place, (*FLAGS, "--ppo.max-staleness=2"), strikes, limit=350)
    all_struck(run, strikes)
    check(run, STEPS, max_staleness=2)
