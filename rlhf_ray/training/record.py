"""What a PPO run says to the world: evaluations, metrics, samples, summary."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rlhf_ray.algos.kl import negative_kl_alarm
from rlhf_ray.config import Config
from rlhf_ray.data.ids import CALIBRATION, HELDOUT
from rlhf_ray.models.reward_model import Calibration
from rlhf_ray.observe.console import PhaseLine
from rlhf_ray.observe.metrics import RunLog
from rlhf_ray.observe.samples import Sample, Split, write_samples
from rlhf_ray.orchestration.cluster import Cluster
from rlhf_ray.orchestration.rollouts import Batch
from rlhf_ray.training.evaluation import Evaluation, calibrate, evaluate, kl_efficiency

CALIBRATION_PROMPTS = 256
SAMPLES_KEPT = 16
NOT_A_PHASE = ("time/step", "time/wait_rollouts", "time/fetch")


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
        self._reported = 0
        self.score: float | None = None  # on held-out prompts, where the step that runs had them
        self.phase_seconds: dict[str, float] = {}
        self.samples_per_s: list[float] = []

    # Before the loop

    def prepare(self) -> None:
        """Calibrate the reward on the reference policy, and evaluate that policy: the baseline."""
        path = self._config.dir / "calibration.json"
        if self._cluster.step == 0:
            found = calibrate(self._cluster.sample(CALIBRATION, 0, CALIBRATION_PROMPTS))
            _write_json(path, asdict(found))
        self._cluster.scorers.calibration = Calibration(**json.loads(path.read_text()))
        if self._cluster.step == 0:
            self.evaluate(0)
        else:
            self._baseline = _read_evaluation(self._config.dir, 0)
            self._latest = _read_evaluation(self._config.dir, self._cluster.step)

    # What the loop calls

    def begin(self, step: int) -> None:
        """A step begins; of those after it, done before a return to a checkpoint, nothing stays."""
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
        calibration = self._calibration
        found = evaluate(samples, calibration)
        _keep_samples(self._config.dir, done, samples, calibration, split="heldout")
        _write_json(_evaluation_path(self._config.dir, done), asdict(found))
        self._baseline = self._baseline or found
        self._latest, self.score = found, found.score
        self._pending |= found.metrics() | self._efficiency(found)
        self._seconds["time/evaluate"] = time.monotonic() - self._mark
        if done == 0:
            self._log.write("ppo", 0, found.metrics())

    def report(self, step: int, batch: Batch, stats: dict[str, float]) -> None:
        """One row of metrics, some samples, one line of progress."""
        if warning := alarm(stats, batch.rows):
            self._tell(f"step {step + 1}: {warning}")
        total = time.monotonic() - self._began
        work = total - self._seconds.get("time/evaluate", 0.0)
        row = stats | self._seconds | self._pending
        row |= {
            "time/generate": batch.generate_seconds,
            "time/score": max(0.0, batch.wait_seconds - batch.generate_seconds),
            "time/wait_rollouts": batch.wait_seconds,
            "time/checkpoint": self._checkpoint_seconds,
            "time/step": total,
            "samples_per_s": batch.rows / work,
            "tokens_per_s": batch.tokens / work,
            "generators/serving": self._cluster.pool.loaded(),
            "generators/restarts": self._cluster.pool.restarts,
            "rollouts/mixed_versions": batch.mixed,
            "rollouts/requeued": self._cluster.ledger.counts["requeued"],
        }
        for name, seconds in row.items():
            if name.startswith("time/") and name not in NOT_A_PHASE:
                self.phase_seconds[name[5:]] = self.phase_seconds.get(name[5:], 0.0) + seconds
        self.samples_per_s.append(row["samples_per_s"])
        self._log.write("ppo", step + 1, row)
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
        """What summary.json says of the PPO phase."""
        before, after = self._baseline, self._latest or self._baseline
        assert before is not None and after is not None
        counts = self._cluster.ledger.counts
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
            "samples_per_s": median(self.samples_per_s) if self.samples_per_s else None,
            "phase_seconds": self.phase_seconds,
            "rollouts": {
                name: counts[name] for name in ("committed", "consumed", "requeued", "duplicated")
            },
            "generator_restarts": self._cluster.pool.restarts,
            "bad_rows": bad_rows,
            "cut_prompts": cut_prompts,
        }

    @property
    def _calibration(self) -> Calibration:
        return self._cluster.scorers.calibration

    def _efficiency(self, found: Evaluation) -> dict[str, float]:
        base = self._baseline
        if base is None or not base.score_std or found.kl <= 0:
            return {}
        gain = (found.score - base.score) / base.score_std
        return {"kl/efficiency": kl_efficiency(gain, found.kl)}


def alarm(stats: dict[str, float], responses: int) -> str | None:
    """What is wrong with an iteration's KL, if anything; not judged where tokens are stale."""
    if stats["staleness/max"] > 0:
        return None
    return negative_kl_alarm(stats["kl/mean_k1"], stats["kl/std_k1"], responses)


def _keep_samples(
    directory: Path,
    step: int,
    rows: Sequence[dict[str, Any]],
    calibration: Calibration,
    *,
    split: Split,
) -> None:
    samples = [
        Sample(
            prompt_id=row["prompt_id"],
            prompt=row["prompt"],
            response=row["response"],
            score=(row["reward"] - calibration.mean) / calibration.std,
            kl=row["kl"],
            gold=row.get("gold"),
            tokens=row["length"],
            finish_reason=row["finish_reason"],
            components={k[6:]: v for k, v in row.items() if k.startswith("score/")},
        )
        for row in rows
    ]
    write_samples(directory, step, samples, split=split)


def _evaluation_path(directory: Path, step: int) -> Path:
    return directory / "evaluations" / f"step-{step:06d}.json"


def _read_evaluation(directory: Path, done: int) -> Evaluation:
    """The newest of version `done` or an earlier one."""
    found = sorted(_evaluation_path(directory, done).parent.glob("step-*.json"))
    newest = [path for path in found if path <= _evaluation_path(directory, done)][-1]
    return Evaluation(**json.loads(newest.read_text()))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")
    os.replace(aside, path)
