"""Pictures and report of a reward model's training, from what the run wrote."""

import json
from pathlib import Path

from rlhf_ray.observe.curves import TRAINING_FILE, VERDICT_FILE, draw_training, draw_verdict
from rlhf_ray.observe.metrics import read_metrics
from rlhf_ray.observe.report import write_report


def draw_reward(run_dir: Path) -> Path:
    """training.png and evaluation.png beside the reward model, and the run's report.html."""
    rows = [row for row in read_metrics(run_dir) if row["phase"] == "rm"]
    if rows:
        draw_training(run_dir / "reward" / TRAINING_FILE, rows)
    verdict = run_dir / "reward" / "evaluation.json"
    if verdict.is_file():
        content = json.loads(verdict.read_text(encoding="utf-8"))
        draw_verdict(run_dir / "reward" / VERDICT_FILE, content)
    return write_report(run_dir)
