"""metrics.jsonl and TensorBoard: what was written is there, once, also after kills and rewinds."""

import json
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_ray.observe.metrics import RunLog, read_metrics
from rlhf_ray.observe.samples import Sample, steps_written, write_sample_file


def steps(run_dir: Path, phase: str) -> list[int]:
    return [row["step"] for row in read_metrics(run_dir) if row["phase"] == phase]


def board(run_dir: Path, phase: str, key: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run_dir / "tb" / phase))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(key)]


def test_rows_and_board_hold_what_was_written(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write("sft", 1, {"loss/lm": 2.5})
        log.write("ppo", 1, {"score/mean": 0.25, "score/polite": 1})
    first, second = read_metrics(tmp_path)
    assert (first["phase"], first["step"], first["loss/lm"]) == ("sft", 1, 2.5)
    assert second["score/polite"] == 1.0
    assert second["time"] >= first["time"] > 0
    assert board(tmp_path, "sft", "loss/lm") == [(1, 2.5)]
    assert board(tmp_path, "ppo", "score/polite") == [(1, 1.0)]


def test_unknown_key_or_phase_writes_nothing(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        with pytest.raises(ValueError, match="no metric 'score_mean'"):
            log.write("ppo", 1, {"kl/coef": 0.1, "score_mean": 1.0})
        with pytest.raises(ValueError, match="no phase 'dpo'"):
            log.write("dpo", 1, {"kl/coef": 0.1})  # type: ignore[arg-type]
    assert list(read_metrics(tmp_path)) == []


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write("ppo", 1, {"grad/norm": float("inf"), "kl/coef": float("nan"), "lr": 1e-4})
    line = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row["grad/norm"] is None and row["kl/coef"] is None and row["lr"] == 1e-4


def test_rewind_forgets_later_rows_of_the_phase_and_later_samples(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in range(1, 9):
            log.write("sft", step, {"loss/lm": 1.0})
        for step in range(6):
            log.write("ppo", step, {"score/mean": float(step)})
            write_sample_file(tmp_path, step, [Sample(0, "p", "r", 0.0)])
            write_sample_file(tmp_path, step, [Sample(0, "p", "r", 0.0)], split="heldout")
        assert log.rewind("ppo", 3) == 2
        log.write("ppo", 4, {"score/mean": 44.0})
    assert steps(tmp_path, "sft") == list(range(1, 9))
    assert steps(tmp_path, "ppo") == [0, 1, 2, 3, 4]
    expected = [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 44.0)]
    assert board(tmp_path, "ppo", "score/mean") == expected
    assert list(steps_written(tmp_path, "step")) == [0, 1, 2, 3]
    assert list(steps_written(tmp_path, "heldout")) == [0, 1, 2, 3]


def test_the_boards_have_what_a_killed_process_had_not_written_there(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write("ppo", 1, {"lr": 1.0})
    shutil.rmtree(tmp_path / "tb")
    with RunLog(tmp_path) as log:
        log.write("ppo", 2, {"lr": 2.0})
    assert board(tmp_path, "ppo", "lr") == [(1, 1.0), (2, 2.0)]


def test_rewind_to_the_last_row_changes_nothing(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write("ppo", 1, {"lr": 1.0})
        before = (tmp_path / "metrics.jsonl").read_bytes()
        assert log.rewind("ppo", 1) == 0
        assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write("ppo", 1, {"lr": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "ppo", "step": 2, "ti')
    assert steps(tmp_path, "ppo") == [1]
    with RunLog(tmp_path) as log:
        log.write("ppo", 2, {"lr": 1.0})
    assert steps(tmp_path, "ppo") == [1, 2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"phase": "ppo", "step": 1}\n{"phase": \n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not JSON"):
        list(read_metrics(tmp_path))
