"""What a record makes of iterations, and of those of earlier starts of the run."""

import io
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import status
from rlhf_ray.actors.control import Report, Wish
from rlhf_ray.config import Config, Evaluate, Run
from rlhf_ray.data.ids import HELDOUT
from rlhf_ray.models.reward_model import Calibration
from rlhf_ray.observe.console import Console
from rlhf_ray.observe.keys import TIMES
from rlhf_ray.observe.metrics import RunLog, read_metrics
from rlhf_ray.orchestration.rollouts import Batch
from rlhf_ray.training.record import Record, over_starts

STATS = {"staleness/max": 0.0, "kl/mean_k1": 0.0, "kl/std_k1": 1.0}
STATS |= {"time/fetch": 0.25, "time/update": 1.0}
COUNTS = {"committed": 4, "consumed": 4, "requeued": 0, "duplicated": 0}
ROW = {"prompt_id": 0, "prompt": "p", "response": "r", "kl": 0.0, "length": 1}
ROW |= {"finish_reason": "eos", "response_token_ids": [1]}
RESPONSES = [ROW | {"reward": reward} for reward in (1.0, 3.0)]


class Start:
    """One start of a run: a record of a cluster whose evaluations give `samples`."""

    def __init__(self, directory: Path, step: int, samples: list[dict[str, Any]]) -> None:
        config = Config(
            run=Run(root=str(directory), name="run"), evaluate=Evaluate(every=2, prompts=2)
        )
        self.told: list[str] = []
        self.cluster = SimpleNamespace(
            step=step,
            sample=lambda split, done, prompts: samples if split == HELDOUT else RESPONSES,
            describe=lambda batch, limit: [],
            report=lambda row: None,
            scorers=(scorers := SimpleNamespace(calibration=None)),
            calibrate=partial(setattr, scorers, "calibration"),
            pool=SimpleNamespace(restarts=0, loaded=lambda: 1),
            ledger=SimpleNamespace(counts=COUNTS),
        )
        self.log = RunLog(config.dir)
        with Console("run", stream=io.StringIO()).phase("ppo", 4) as line:
            self.record = Record(config, self.cluster, self.log, line, self.told.append)  # type: ignore[arg-type]

    def iterate(self, step: int, *, restarts: int = 0) -> None:
        self.cluster.pool.restarts = restarts
        self.record.begin(step)
        self.record.evaluate(step + 1)
        batch = Batch([], 4, 40, 0, generate_seconds=2.0, wait_seconds=3.0)
        self.record.report(step, batch, dict(STATS))
        self.cluster.step = step + 1

    def summary(self) -> dict[str, Any]:
        return self.record.summary(bad_rows=0, cut_prompts=0)


def test_no_second_is_in_two_parts_of_an_iteration(tmp_path: Path) -> None:
    start = Start(tmp_path, 0, RESPONSES)
    start.record.prepare()
    start.iterate(0)
    row = list(read_metrics(tmp_path / "run"))[-1]
    assert row["time/generate"] + row["time/score"] + row["time/fetch"] == row["time/wait_rollouts"]
    assert start.summary()["phase_seconds"] == {
        name: row[f"time/{name}"] for name in TIMES if row.get(f"time/{name}")
    }
    _, seconds, *_ = status.lines(Report(row | {"of": 1}), Wish(1), now=0.0)
    assert seconds.endswith("generate 2.00  update 1.00  score 0.75  fetch 0.25")


def test_a_summary_is_of_all_starts_of_a_run(tmp_path: Path) -> None:
    first = Start(tmp_path, 0, RESPONSES)
    first.record.prepare()
    for step in range(3):
        first.iterate(step, restarts=step)
    whole = first.summary()
    assert whole["samples_per_s"] > 0 and whole["phase_seconds"]["generate"] == 6.0
    assert whole["generator_restarts"] == 2
    again = Start(tmp_path, 3, RESPONSES)
    again.record.prepare()
    assert again.summary() == whole
    again.iterate(3, restarts=1)
    assert again.summary()["phase_seconds"]["generate"] == 8.0
    assert again.summary()["generator_restarts"] == 3


def test_a_count_that_begins_again() -> None:
    assert over_starts([]) == 0
    assert over_starts([0, 1, 1, 3, 0, 2, 2]) == 5


def test_an_evaluation_that_the_reward_drops_is_left_out(tmp_path: Path) -> None:
    start = Start(tmp_path, 0, RESPONSES)
    start.record.prepare()
    before = start.summary()["heldout"]
    start.cluster.sample = lambda split, done, prompts: []
    start.iterate(1)
    (told,) = start.told
    assert told.startswith("step 2: not evaluated, the reward dropped all responses")
    assert start.record.score is None and start.summary()["heldout"] == before
    assert "heldout/score" not in list(read_metrics(tmp_path / "run"))[-1]


def test_a_baseline_that_the_reward_drops_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dropped all responses to held-out prompts: look at its"):
        Start(tmp_path, 0, []).record.prepare()
    written = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert Calibration(**written) == Calibration(2.0, 1.0, 2)
