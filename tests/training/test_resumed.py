"""A run that goes on in another process: its summary is as of one, its record is never lost."""

import shutil
from pathlib import Path
from statistics import median

import pytest

from tests.running.jobs import job, rows, succeed, summary

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


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_keeps_its_record(
    demonstration: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "demo"
    shutil.copytree(demonstration[0], run)
    for path in run.glob("checkpoints/step-*/meta.json"):
        path.write_text("{}")
    metrics, samples = (run / "metrics.jsonl").read_bytes(), set((run / "rollouts").iterdir())
    done = job("ppo", f"--run.root={tmp_path}", "--resume")
    last = done.out.strip().splitlines()[-1]
    assert done.code == 2 and last.startswith("error: ") and "no whole checkpoint" in last
    assert "step-000003: meta.json" in last and "--run.overwrite" in last
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert set((run / "rollouts").iterdir()) == samples
