"""Real faults in a real run: kill −9 and SIGSTOP, and the run ends as if nothing had been."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running.jobs import (
    STEPS,
    TINY,
    actor_processes,
    fingerprint,
    rows,
    start,
    summary,
    wait_for,
)

Make = Callable[[str], tuple[Path, tuple[str, ...]]]
FAST = ("--cluster.heartbeat-timeout-s=6",)


def strike(role: str, how: signal.Signals) -> int:
    """Send a signal to the first living process of a role; its pid."""
    found = wait_for(lambda: actor_processes(role), seconds=60, why=f"no {role} is alive")
    os.kill(found[0].pid, how)
    return found[0].pid


def reached(run: Path, step: int) -> Callable[[], bool]:
    return lambda: (
        any(row["step"] >= step for row in rows(run)) if (run / "metrics.jsonl").exists() else False
    )


def finish(driver, run: Path) -> None:
    """Wait for the run's good end; what it left."""
    assert driver.wait(timeout=240) == 0, (run / "log").read_text()[-3000:]
    counts = summary(run)["rollouts"]
    assert counts["committed"] == counts["consumed"] == STEPS * 16
    assert counts["duplicated"] == 0
    assert [row["step"] for row in rows(run)] == list(range(STEPS + 1))
    wait_for(lambda: not actor_processes(), seconds=30, why="an actor outlives the run")


def test_generator_scorer_and_learner_killed_in_one_run(undisturbed: str, new_run: Make):
    run, place = new_run("struck")
    driver = start("ppo", *place, *TINY, f"--ppo.iterations={STEPS}", log=run / "log")
    for step, role in ((2, "generator"), (6, "reward"), (10, "learner")):
        wait_for(reached(run, step), why=(run / "log").read_text())
        strike(role, signal.SIGKILL)
    finish(driver, run)
    assert fingerprint(run) == undisturbed
    log = (run / "log").read_text()
    assert "its shards go to others" in log
    assert "going back to the last checkpoint" in log


@pytest.mark.slow
@pytest.mark.parametrize("role", ["generator", "reference", "reward", "learner"])
def test_killed(undisturbed: str, new_run: Make, role: str):
    run, place = new_run(f"killed-{role}")
    driver = start("ppo", *place, *TINY, f"--ppo.iterations={STEPS}", log=run / "log")
    wait_for(reached(run, 2), why=(run / "log").read_text())
    strike(role, signal.SIGKILL)
    finish(driver, run)
    assert fingerprint(run) == undisturbed


def test_a_wedged_generator_is_replaced(undisturbed: str, new_run: Make):
    run, place = new_run("wedged")
    driver = start("ppo", *place, *TINY, *FAST, f"--ppo.iterations={STEPS}", log=run / "log")
    wait_for(reached(run, 2), why=(run / "log").read_text())
    stopped = strike("generator", signal.SIGSTOP)
    finish(driver, run)
    assert fingerprint(run) == undisturbed
    assert stopped not in [p.pid for p in actor_processes()]
    assert "silent for" in (run / "log").read_text()
