"""What ends a run ends it with its cause: nothing is tried for ever, and what was whole stays."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.running import start_struck
from tests.chaos.strikes import Strike
from tests.running.disks import small_disk
from tests.running.jobs import (
    STEPS,
    TINY,
    actor_processes,
    fingerprint,
    job,
    start,
    succeed,
    wait_for,
)

Make = Callable[[str], tuple[Path, tuple[str, ...]]]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_tried_again(new_run: Make):
    _, place = new_run("exploded")
    done = job("ppo", *place, *TINY, "--ppo.iterations=8", "--ppo.lr=1e30")
    assert done.code != 0
    assert "FloatingPointError" in done.out and "step" in done.out.splitlines()[-1]
    assert "going back to the last checkpoint" not in done.out


@pytest.mark.slow
def test_a_learner_group_that_is_lost_at_each_save_is_not_made_anew_for_ever(new_run: Make):
    """Steps that are only done again are no sign that it goes on."""
    run, place = new_run("lost")
    strikes = [Strike("learner", "learner saves", time) for time in (5, 6, 7, 8)]
    driver = start_struck(run, strikes, [*place, *TINY, f"--ppo.iterations={STEPS}"])
    assert driver.wait(timeout=240) != 0
    log = (run / "log").read_text()
    assert "lost 4 times in a row at step 5" in log and "it would be again" in log
    wait_for(lambda: not actor_processes(), seconds=30, why="an actor outlives the run")


@pytest.fixture
def disk_of_runs(tmp_path: Path) -> Iterator[Path]:
    """A small file system in the place of the runs' directory."""
    with small_disk(tmp_path, "24m") as place:
        yield place


@pytest.mark.slow
def test_a_disk_that_fills_up_while_the_run_goes_on(
    undisturbed: str, disk_of_runs: Path, new_run: Make
):
    run, place = new_run("full")
    driver = start("ppo", *place, *TINY, f"--ppo.iterations={STEPS}", log=disk_of_runs / "log")
    wait_for(lambda: list(run.glob("checkpoints/step-*")))
    filler = disk_of_runs / "filler"
    with filler.open("wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"x" * 65536)
            file.flush()
    assert driver.wait(timeout=60) == 2
    whole = sorted(run.glob("checkpoints/step-*"))
    assert whole
    filler.unlink()
    assert "is damaged" not in succeed("ppo", *place, "--resume")
    assert fingerprint(run) == undisturbed
