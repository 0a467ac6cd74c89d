"""Exact mode: the same run bit for bit, stopped and resumed, or killed and resumed."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running.interrupted import Interrupted
from tests.running.jobs import (
    STEPS,
    TINY,
    actor_processes,
    fingerprint,
    rows,
    start,
    succeed,
    summary,
    wait_for,
)

Make = Callable[[str], tuple[Path, tuple[str, ...]]]


@pytest.mark.slow
def test_half_and_half_is_the_whole(undisturbed: str, new_run: Make):
    run, place = new_run("halves")
    succeed("ppo", *place, *TINY, f"--ppo.iterations={STEPS // 2}")
    assert fingerprint(run) != undisturbed
    succeed("ppo", *place, "--resume", f"--ppo.iterations={STEPS}")
    assert fingerprint(run) == undisturbed
    assert [row["step"] for row in rows(run)] == list(range(STEPS + 1))


@pytest.mark.slow
def test_stopped_by_ctrl_c_and_resumed_is_the_whole(undisturbed: str, interrupted: Interrupted):
    assert fingerprint(interrupted.directory) == undisturbed


@pytest.mark.slow
def test_killed_at_a_random_moment_and_resumed_is_the_whole(undisturbed: str, new_run: Make):
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 1000))
    print(f"KILL_SEED={seed}")
    run, place = new_run("killed")
    driver = start("ppo", *place, *TINY, f"--ppo.iterations={STEPS}", log=run / "log")
    wait_for(lambda: list(run.glob("checkpoints/step-*")), why=(run / "log").read_text)
    time.sleep(random.Random(seed).uniform(0.0, 2.0))
    driver.kill()
    driver.wait()
    wait_for(lambda: not actor_processes(), seconds=30, why="actors outlive their driver")
    succeed("ppo", *place, "--resume")
    assert fingerprint(run) == undisturbed
    counts = summary(run)["rollouts"]
    assert counts["committed"] == counts["consumed"] == STEPS * 16
    assert counts["duplicated"] == 0
    assert [row["step"] for row in rows(run)] == list(range(STEPS + 1))
