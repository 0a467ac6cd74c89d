"""A run that is scaled, asked about and stopped while it goes on, by the jobs that users have."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.running.jobs import TINY, actor_processes, job, rows, start, succeed, summary, wait_for

Make = Callable[[str], tuple[Path, tuple[str, ...]]]


def status(name: str) -> dict[str, Any]:
    """What jobs/status.py says; nothing while no run of the name is alive."""
    done = job("status", f"--run={name}", "--json")
    return json.loads(done.out.splitlines()[-1]) if done.code == 0 else {}


def serving(found: dict[str, Any]) -> list[str]:
    return [
        actor["name"]
        for actor in found.get("actors", [])
        if actor["role"] == "generator" and actor["version"]  # it may be loading the next
    ]


def learners(run: str) -> list[dict[str, Any]]:
    return [actor for actor in status(run).get("actors", []) if actor["role"] == "learner"]


def events_of(run: Path) -> str:
    """What the run said happened; nothing before the first event."""
    log = run / "events.log"
    return log.read_text() if log.exists() else ""


def standing_still(run: Path) -> int:
    """Iterations done, when none was for longer than one takes."""
    before = len(rows(run))
    time.sleep(3)
    return before if len(rows(run)) == before else 0


@pytest.mark.slow
def test_scaled_up_asked_about_stopped_and_resumed(new_run: Make):
    run, place = new_run("steered")
    flags = (*TINY, "--ppo.iterations=2000", "--checkpoint.every=1000")
    driver = start("ppo", *place, *flags, log=run / "log")
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(rows(run)) > 2)
    out = succeed("scale", "--run=steered", "--generators=+1")
    assert "steered: 2 generators are wished for" in out
    before = len(rows(run))
    found = wait_for(lambda: (s := status("steered")) and len(serving(s)) == 2 and s)
    assert len(rows(run)) > before, "the loop went on while the second one started"
    assert {actor["role"] for actor in found["actors"]} == {
        *("driver", "control", "generator", "reference", "reward", "learner")
    }
    assert all(actor["pid"] and actor["state"] for actor in found["actors"])
    assert found["iteration"]["of"] == 2000 and found["iteration"]["time/update"] > 0
    refused = job("scale", "--run=steered", "--generators=-5")
    assert refused.code == 2 and "a run needs at least 1" in refused.out
    succeed("scale", "--run=steered", "--generators=auto", "--min=1", "--max=1")
    succeed("stop", "--run=steered")
    assert driver.wait(timeout=60) == 0, (run / "log").read_text()[-3000:]
    events = events_of(run)
    for words in ("1 → 2 generators", "generator-1 serves", "autoscaling between 1 and 1"):
        assert words in events
    done = summary(run)
    assert done["iterations"] == rows(run)[-1]["step"] < 2000
    (last,) = (run / "checkpoints").iterdir()
    assert last.name == f"step-{done['iterations']:06d}", "none was due before the end"
    assert done["rollouts"]["committed"] == done["rollouts"]["consumed"] == 16 * done["iterations"]
    wait_for(lambda: not actor_processes(), seconds=30, why="an actor outlives the run")
    more = done["iterations"] + 1
    succeed("ppo", *place, "--resume", f"--ppo.iterations={more}")
    assert [row["step"] for row in rows(run)] == list(range(more + 1))


@pytest.mark.slow
def test_a_learner_killed_while_the_run_is_held(new_run: Make):
    run, place = new_run("held")
    driver = start("ppo", *place, *TINY, "--ppo.iterations=2000", log=run / "log")
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(rows(run)) > 2)
    assert "held: held before its next iteration" in succeed("pause", "--run=held")
    wait_for(lambda: "paused before the next iteration" in events_of(run))
    before = wait_for(lambda: standing_still(run))
    (learner,) = actor_processes("learner")
    learner.kill()
    wait_for(lambda: "going back to the last checkpoint" in events_of(run))
    wait_for(lambda: any(a["restarts"] and a["version"] for a in learners("held")))
    assert standing_still(run) == before, "made anew, it is still held"
    assert "held: goes on" in succeed("pause", "--run=held", "--go-on")
    wait_for(lambda: len(rows(run)) > before + 2)
    succeed("stop", "--run=held")
    assert driver.wait(timeout=60) == 0, (run / "log").read_text()[-3000:]
    done = summary(run)
    assert done["rollouts"]["committed"] == done["rollouts"]["consumed"] == 16 * done["iterations"]
