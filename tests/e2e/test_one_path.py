"""Synchronous and asynchronous runs are one path: K = 0 is the straight line, bit for bit."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running.jobs import ROOT, TINY, fingerprint, rows, succeed, summary

Make = Callable[[str], tuple[Path, tuple[str, ...]]]
SOME = ("--ppo.iterations=6",)


@pytest.mark.slow
def test_without_staleness_the_run_is_the_straight_line(new_run: Make, tmp_path: Path):
    run, place = new_run("run")
    flags = [*place, *TINY, *SOME, "--run.seed=3"]
    succeed("ppo", *flags)
    program = str(ROOT / "tests" / "e2e" / "straight_line.py")
    out = tmp_path / "line" / "policy"
    done = subprocess.run(
        [sys.executable, program, str(out), *flags],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert fingerprint(tmp_path / "line") == fingerprint(run)


@pytest.mark.slow
def test_running_ahead_stays_within_its_bound_and_uses_it(new_run: Make):
    run, place = new_run("ahead")
    longer = ("--rollout.max-response-tokens=64", "--rollout.ignore-eos")
    succeed("ppo", *place, *TINY, *longer, "--ppo.iterations=12", "--ppo.max-staleness=1")
    found = rows(run)[1:]
    assert max(row["staleness/max"] for row in found) == 1
    assert all(0 <= row["staleness/mean"] <= 1 for row in found)
    mixed = [row["rollouts/mixed_versions"] for row in found]
    assert max(mixed) > 0, "weights changed while responses were written"
    counts = summary(run)["rollouts"]
    assert counts["committed"] == counts["consumed"] == 12 * 16
    assert counts["duplicated"] == 0
