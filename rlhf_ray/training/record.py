"""What a PPO run says to the world: evaluations, metrics, samples, summary."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rlhf_ray.algos.kl import negative_kl_alarm
from rlhf_ray.config import Config
from rlhf_ray.data.ids import CALIBRATION, HELDOUT
from rlhf_ray.files import write_json
from rlhf_ray.learners.targets import kl_of_samples
from rlhf_ray.models.reward_model import Calibration
from rlhf_ray.observe.console import PhaseLine
from rlhf_ray.observe.keys import TIMES
from rlhf_ray.observe.metrics import RunLog, read_metrics
from rlhf_ray.observe.samples import Sample, Split, write_sample_file
from rlhf_ray.orchestration.cluster import Cluster
from rlhf_ray.orchestration.rollouts import Batch
from rlhf_ray.training.evaluation import (
    Evaluation,
    Rows,
    all_dropped,
    calibrate,
    calibrated_scores,
    evaluate,
    kl_efficiency,
)

CALIBRATION_PROMPTS = 256
SAMPLES_KEPT = 16


class Record:
    """Called by the loop at each of its points."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        log: RunLog,
        line: PhaseLine,
        tell: Callable[[str], None],
    ) -> None:
        self._tell = tell
        self._config, self._cluster, self._log, self._line = config, cluster, log, line
        self._seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._mark = self._began
        self._baseline: Evaluation | None = None
        self._latest: Evaluation | None = None
        self._pending: dict[str, float] = {}
        self._checkpoint_seconds = 0.0
        self._reported = cluster.step
        self.score: float | None = None  # on held-out prompts, where the step that runs had them

    # Before the loop

    def prepare(self) -> None:
        """Calibrate the reward on the reference policy, and evaluate that policy: the baseline."""
        path = self._config.dir / "calibration.json"
        if self._cluster.step == 0:
            found = calibrate(self._cluster.sample(CALIBRATION, 0, CALIBRATION_PROMPTS))
            write_json(path, asdict(found))
        self._cluster.calibrate(Calibration(**json.loads(path.read_text())))
        if self._cluster.step == 0:
            self.evaluate(0)
        else:
            self._baseline = _read_evaluation(self._config.dir, 0)
            self._latest = _read_evaluation(self._config.dir, self._cluster.step)

    # What the loop calls

    def begin(self, step: int) -> None:
        """A step begins; metrics of it and later ones, from before a return, are discarded."""
        if step < self._reported:
            self._log.rewind("ppo", step)
        self._began = self._mark = time.monotonic()
        self._pending, self._seconds, self.score = {}, {}, None

    def published(self, seconds: float) -> None:
        """The version is out, after `seconds`."""
        self._seconds["time/publish"] = seconds
        self._mark = time.monotonic()

    def evaluate(self, done: int, *, last: bool = False) -> None:
        """Held-out responses of version `done`, when it is due: first, every N, last."""
        if done % self._config.evaluate.every and not last:
            return
        samples = self._cluster.sample(HELDOUT, done, self._config.evaluate.prompts)
        if samples:
            self._judge(done, samples)
        elif done:
            self._tell(f"step {done}: not evaluated, {all_dropped('to held-out prompts')}")
        else:
            raise ValueError(all_dropped("to held-out prompts"))
        self._seconds["time/evaluate"] = time.monotonic() - self._mark

    def report(self, step: int, batch: Batch, stats: dict[str, float]) -> None:
        """One row of metrics, some samples, one line of progress."""
        if warning := negative_kl_alarm(*kl_of_samples(stats), batch.rows):
            self._tell(f"step {step + 1}: {warning}")
        total = time.monotonic() - self._began
        work = total - self._seconds.get("time/evaluate", 0.0)
        row = stats | self._seconds | self._pending
        elsewhere = batch.generate_seconds + stats["time/fetch"]
        row |= {
            "time/generate": batch.generate_seconds,
            "time/score": max(0.0, batch.wait_seconds - elsewhere),
            "time/wait_rollouts": batch.wait_seconds,
            "time/checkpoint": self._checkpoint_seconds,
            "time/evaluate": self._seconds.get("time/evaluate", 0.0),
            "time/step": total,
            "samples_per_s": batch.rows / work,
            "tokens_per_s": batch.tokens / work,
            "generators/serving": self._cluster.pool.loaded(),
            "generators/restarts": self._cluster.pool.restarts,
            "rollouts/mixed_versions": batch.mixed,
            "rollouts/requeued": self._cluster.ledger.counts["requeued"],
        }
        self._log.write("ppo", step + 1, row)
        self._log.sync()
        self._reported = step + 1
        if (step + 1) % self._config.evaluate.every == 0:
            rows = self._cluster.describe(batch, SAMPLES_KEPT)
            _keep_samples(self._config.dir, step + 1, rows, self._calibration, split="step")
        self._cluster.report({"step": step + 1, "of": self._config.ppo.iterations, **row})
        self._line.update(step + 1, row)

    def checkpointed(self, seconds: float) -> None:
        """A checkpoint was written in so many seconds (0: none was due); the next row has them."""
        self._checkpoint_seconds = seconds

    # After the loop

    def summary(self, *, bad_rows: int, cut_prompts: int) -> dict[str, Any]:
        """What summary.json says of the PPO phase: of all its starts, by the rows that stand."""
        before, after = self._baseline, self._latest or self._baseline
        assert before is not None and after is not None
        counts, rows = self._cluster.ledger.counts, self._iterations()
        restarts = [row["generators/restarts"] for row in rows]
        return {
            "heldout": {
                "score_before": before.score,
                "score_after": after.score,
                "score_std_before": before.score_std,
                "gold_before": before.gold,
                "gold_after": after.gold,
                "kl": after.kl,
                "kl_efficiency": self._efficiency(after).get("kl/efficiency"),
                "distinct2_before": before.distinct2,
                "distinct2_after": after.distinct2,
                "length_before": before.length,
                "length_after": after.length,
            },
            "iterations": self._cluster.step,
            "samples_per_s": median(row["samples_per_s"] for row in rows) if rows else None,
            "phase_seconds": phase_seconds(rows),
            "rollouts": {
                name: counts[name] for name in ("committed", "consumed", "requeued", "duplicated")
            },
            "generator_restarts": over_starts([*restarts, self._cluster.pool.restarts]),
            "bad_rows": bad_rows,
            "cut_prompts": cut_prompts,
        }

    @property
    def _calibration(self) -> Calibration:
        return self._cluster.scorers.calibration

    def _iterations(self) -> list[dict[str, Any]]:
        """The rows of all iterations."""
        rows = read_metrics(self._config.dir)
        return [row for row in rows if row["phase"] == "ppo" and row["step"] > 0]

    def _judge(self, done: int, samples: Rows) -> None:
        """Keep the held-out responses of version `done`, and what they say of it."""
        found = evaluate(samples, self._calibration)
        _keep_samples(self._config.dir, done, samples, self._calibration, split="heldout")
        write_json(_evaluation_path(self._config.dir, done), asdict(found))
        self._baseline = self._baseline or found
        self._latest, self.score = found, found.score
        self._pending |= found.metrics() | self._efficiency(found)
        if done == 0:
            self._log.write("ppo", 0, found.metrics())

    def _efficiency(self, found: Evaluation) -> dict[str, float]:
        base = self._baseline
        if base is None or not base.score_std or found.kl <= 0:
            return {}
        gain = (found.score - base.score) / base.score_std
        return {"kl/efficiency": kl_efficiency(gain, found.kl)}


def phase_seconds(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What iterations spent their seconds on."""
    held = {name: [row.get(f"time/{name}") for row in rows] for name in TIMES}
    sums = {name: sum(filter(None, seconds)) for name, seconds in held.items()}
    return {name: total for name, total in sums.items() if total}


def over_starts(counts: Iterable[float]) -> int:
    """What a count has come to that begins at 0 in each start of the run."""
    return int(sum(b - a if b >= a else b for a, b in pairwise([0, *counts])))


def _keep_samples(
    directory: Path,
    step: int,
    rows: Rows,
    calibration: Calibration,
    *,
    split: Split,
) -> None:
    samples = [
        Sample(
            prompt_id=row["prompt_id"],
            prompt=row["prompt"],
            response=row["response"],
            score=score,
            kl=row["kl"],
            gold=row.get("gold"),
            tokens=row["length"],
            finish_reason=row["finish_reason"],
            components={
                name.removeprefix("score/"): value
                for name, value in row.items()
                if name.startswith("score/")
            },
        )
        for row, score in zip(rows, calibrated_scores(rows, calibration), strict=True)
    ]
    write_sample_file(directory, step, samples, split=split)


def _evaluation_path(directory: Path, step: int) -> Path:
    return directory / "evaluations" / f"step-{step:06d}.json"


def _read_evaluation(directory: Path, done: int) -> Evaluation:
    """The newest of version `done` or an earlier one."""
    found = sorted(_evaluation_path(directory, done).parent.glob("step-*.json"))
    newest = [path for path in found if path <= _evaluation_path(directory, done)][-1]
    return Evaluation(**json.loads(newest.read_text()))
