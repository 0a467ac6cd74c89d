"""summary.json of a run that went on in another process says what that of one process would."""

import shutil
from pathlib import Path
from statistics import median

import pytest

from tests.running.jobs import rows, succeed, summary

OF_THIS_START = ("total_seconds", "peak_pss_mb")


@pytest.mark.slow
def test_a_summary_is_of_all_starts(demonstration: tuple[Path, str], tmp_path: Path) -> None:
    run, resume = tmp_path / "demo", (f"--run.root={tmp_path}", "--resume")
    shutil.copytree(demonstration[0], run)
    whole = summary(run)
    for name in ("checkpoints/step-000003", "policy"):  # as it was within the third iteration
        shutil.rmtree(run / name)
    (run / "summary.json").unlink()
    succeed("ppo", *resume)
    interrupted, iterations = summary(run), rows(run)[1:]
    for name in ("iterations", "heldout", "bad_rows", "rollouts", "generator_restarts"):
        assert interrupted[name] == whole[name], name
    seconds = interrupted["phase_seconds"]
    assert seconds.keys() == whole["phase_seconds"].keys()
    assert [seconds[name] for name in ("sft", "rm")] == [
        whole["phase_seconds"][name] for name in ("sft", "rm")
    ]
    assert seconds["generate"] == pytest.approx(sum(row["time/generate"] for row in iterations))
    assert interrupted["samples_per_s"] == median(row["samples_per_s"] for row in iterations)
    succeed("ppo", *resume)
    finished = summary(run)
    for name in OF_THIS_START:
        del interrupted[name], finished[name]
    assert finished == interrupted
