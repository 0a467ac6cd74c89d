"""Real faults in a real run: kill −9 and SIGSTOP, and the run ends as if nothing had been."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running.jobs import (
    STEPS,
    TINY,
    fingerprint,
    processes_of,
    rows,
    start,
    summary,
    wait_for,
)

Make = Callable[[str], tuple[Path, tuple[str, ...]]]
FAST = ("--cluster.heartbeat-timeout-s=6",)


def strike(run: str, role: str, how: signal.Signals) -> int:
    """Send a signal to the first living process of a role; its pid."""
    process = wait_for(
        lambda: next((p for p in processes_of(run) if f"{run}-{role}" in p.cmdline()[0]), None),
        why=f"no {role} is alive",
    )
    os.kill(process.pid, how)
    return process.pid


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
    wait_for(lambda: not processes_of(run.name), seconds=30, why="an actor outlives the run")


def test_generator_scorer_and_learner_killed_in_one_run(undisturbed: str, new_run: Make):
    run, place = new_run("struck")
    driver = start("ppo", *place, *TINY, f"--ppo.iterations={STEPS}", log=run / "log")
    for step, role in ((1, "generator"), (2, "reward"), (3, "learner")):
        wait_for(reached(run, step), why=(run / "log").read_text())
        strike("struck", role, signal.SIGKILL)
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
    strike(run.name, role, signal.SIGKILL)
    finish(driver, run)
    assert fingerprint(run) == undisturbed


def test_a_wedged_generator_is_replaced(undisturbed: str, new_run: Make):
    run, place = new_run("wedged")
    driver = start("ppo", *place, *TINY, *FAST, f"--ppo.iterations={STEPS}", log=run / "log")
    wait_for(reached(run, 1), why=(run / "log").read_text())
    stopped = strike("wedged", "generator", signal.SIGSTOP)
    finish(driver, run)
    assert fingerprint(run) == undisturbed
    assert stopped not in [p.pid for p in processes_of("wedged")]
    assert "silent for" in (run / "log").read_text()
