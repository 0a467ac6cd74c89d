"""Exact mode: the same run bit for bit, stopped and resumed, or killed and resumed."""

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running.jobs import TINY, processes_of, rows, start, succeed, summary, wait_for

STEPS = 4
Make = Callable[[str], tuple[Path, tuple[str, ...]]]


def fingerprint(run: Path) -> str:
    """Of the final weights."""
    return hashlib.sha256((run / "policy" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to."""
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "whole").mkdir()
    for part in ("sft", "reward"):
        (root / "whole" / part).symlink_to(base / part)
    succeed("ppo", f"--run.root={root}", "--run.name=whole", *TINY, f"--ppo.iterations={STEPS}")
    return root / "whole"


def test_half_and_half_is_the_whole(undisturbed: Path, new_run: Make):
    run, place = new_run("halves")
    succeed("ppo", *place, *TINY, f"--ppo.iterations={STEPS // 2}")
    assert fingerprint(run) != fingerprint(undisturbed)
    succeed("ppo", *place, "--resume", f"--ppo.iterations={STEPS}")
    assert fingerprint(run) == fingerprint(undisturbed)
    assert [row["step"] for row in rows(run)] == list(range(STEPS + 1))


def test_killed_at_a_random_moment_and_resumed_is_the_whole(undisturbed: Path, new_run: Make):
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 1000))
    print(f"KILL_SEED={seed}")
    run, place = new_run("killed")
    driver = start("ppo", *place, *TINY, f"--ppo.iterations={STEPS}", log=run / "log")
    wait_for(lambda: list(run.glob("checkpoints/step-*")), why=(run / "log").read_text())
    time.sleep(random.Random(seed).uniform(0.0, 2.0))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not processes_of("killed"), seconds=30, why="actors outlive their driver")
    succeed("ppo", *place, "--resume")
    assert fingerprint(run) == fingerprint(undisturbed)
    counts = summary(run)["rollouts"]
    assert counts["committed"] == counts["consumed"] == STEPS * 16
    assert counts["duplicated"] == 0
    assert [row["step"] for row in rows(run)] == list(range(STEPS + 1))
