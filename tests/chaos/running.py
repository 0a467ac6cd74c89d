"""Runs that are struck, and what must hold of each however it was struck."""

import json
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_ray.data.ids import TRAIN, RolloutKey, rollout_id
from rlhf_ray.data.prompts import batch_of_step
from tests.chaos.strikes import DRIVER, Strike
from tests.running.jobs import ROOT, actor_processes, rows, summary, wait_for
from tests.running.scripts import Script

PROMPTS = 16  # of an iteration, as in TINY
# Short deadlines, so that what is stopped is found soon; a start may take long on a busy machine.
IMPATIENT = (
    *("--cluster.heartbeat-timeout-s=5", "--cluster.shard-timeout-s=20"),
    "--cluster.start-timeout-s=60",
)


def run_struck(
    run: Path, place: Sequence[str], flags: Sequence[str], strikes: Sequence[Strike], *, limit: int
) -> None:
    """Run with strikes to its end, resumed after each that the driver itself is struck by.

    What was due before that one and has not come by then comes after it. All must have come.
    """
    asked, left = [*place, *flags], list(strikes)
    while True:
        before = len(notes(run, "struck"))
        done = [note["consumed"] + 1 for note in notes(run, "consumed")[-1:]]
        due = _until_driver(left)
        code = _drive(run, [strike.from_step(sum(done)) for strike in due], asked, limit)
        came = {note["place"] for note in notes(run, "struck")[before:]}
        left = [strike for i, strike in enumerate(left) if i not in came]
        asked = [*place, "--resume"]
        if not any(due[i].role == DRIVER for i in came):
            break
        assert code == -signal.SIGKILL, (run / "log").read_text()[-3000:]
        wait_for(lambda: not actor_processes(), seconds=30, why="actors outlive their driver")
    assert code == 0, (run / "log").read_text()[-3000:]
    assert not left, "strikes that never came"


def _until_driver(strikes: Sequence[Strike]) -> list[Strike]:
    """Those of one launch: up to and including the first that ends it."""
    ends = [i for i, strike in enumerate(strikes) if strike.role == DRIVER]
    return list(strikes[: ends[0] + 1]) if ends else list(strikes)


def start_struck(run: Path, strikes: Sequence[Strike], flags: Sequence[str]) -> Script:
    """Start tests/chaos/driver.py; its output is added to `log`."""
    asked = run / "strikes.json"
    asked.write_text(json.dumps([asdict(strike) for strike in strikes]))
    driver = ROOT / "tests" / "chaos" / "driver.py"
    return Script(driver, str(asked), str(journal(run)), *flags, out=run / "log", cwd=ROOT)


def _drive(run: Path, strikes: Sequence[Strike], flags: Sequence[str], limit: int) -> int:
    """The driver to its end; its exit status."""
    driver = start_struck(run, strikes, flags)
    try:
        return driver.wait(timeout=limit)
    finally:
        driver.kill()


def journal(run: Path) -> Path:
    """What the driver wrote down."""
    return run / "journal.jsonl"


def notes(run: Path, kind: str) -> list[dict[str, Any]]:
    """The driver's notes that say `kind`."""
    lines = journal(run).read_text().splitlines() if journal(run).exists() else []
    return [note for note in map(json.loads, lines) if kind in note]


def check(run: Path, steps: int, *, max_staleness: int = 0) -> None:
    """Every rollout was consumed once in the lineage that survives, fresh enough; nobody is left.

    The ids are those that the tables held which the learners took, not the ledger's counts.
    """
    surviving: dict[int, dict[str, Any]] = {}
    lived: set[tuple[int, int]] = set()
    for note in notes(run, "consumed"):
        step = note["consumed"]
        assert (note["incarnation"], step) not in lived, f"step {step} was learned from twice"
        lived.add((note["incarnation"], step))
        surviving = {k: v for k, v in surviving.items() if k < step} | {step: note}
    assert sorted(surviving) == list(range(steps))
    prompts = notes(run, "prompts")[0]["prompts"]
    for step, note in surviving.items():
        ids = batch_of_step(prompts, PROMPTS, 0, step)
        asked = [rollout_id(RolloutKey(TRAIN, step, i, 0)) for i in ids]
        assert sorted(note["ids"]) == sorted(asked), f"step {step}: other rollouts than asked for"
        for spans in note["spans"]:
            versions = list(zip(spans[1::3], spans[2::3], strict=True))
            assert {incarnation for incarnation, _ in versions} == {note["incarnation"]}
            assert all(0 <= step - sampled <= max_staleness for _, sampled in versions), spans
    counts = summary(run)["rollouts"]
    assert counts["committed"] == counts["consumed"] == steps * PROMPTS
    assert counts["duplicated"] == 0
    assert [row["step"] for row in rows(run)] == list(range(steps + 1))
    wait_for(lambda: not actor_processes(), seconds=30, why="an actor outlives the run")


def all_struck(run: Path, strikes: Sequence[Strike]) -> None:
    """Every strike found its process."""
    struck = [note for note in notes(run, "struck") if note["pid"]]
    assert len(struck) == len(strikes), struck
