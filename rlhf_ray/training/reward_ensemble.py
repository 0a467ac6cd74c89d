"""An ensemble of reward models, trained side by side; and what it gets right together."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_ray.algos.ensemble import COMBINATIONS, combine_scores
from rlhf_ray.config import Config
from rlhf_ray.files import write_json, write_text
from rlhf_ray.models.ensemble import first_member, member_name, write_ensemble
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.reward_model import Calibration, calibrate
from rlhf_ray.orchestration.phases import run_phases, set_up
from rlhf_ray.orchestration.plan import Plan
from rlhf_ray.training.output import replace_directory
from rlhf_ray.training.paths import read_on_nodes
from rlhf_ray.training.ranked_data import tokenise_lists
from rlhf_ray.training.reward_evaluation import judge
from rlhf_ray.training.reward_model import (
    EVALUATION_FILE,
    METRICS_FILE,
    load_split,
    train_reward_model,
)

Row = dict[str, Any]


def train_ensemble(
    config: Config, base: str, out: Path, *, plan: Plan, log: Callable[[str], None]
) -> Iterator[Row]:
    """Train `config.rm.members` reward models into `out`; the rows of them all as one phase's.

    Members that are there already are not trained again. A row's step and total are sums over
    members; its metrics are those of the member it came from. The last row (done) has the metrics
    of their mean. Raises ValueError as `train_reward_model` does, and without held-out lists, which
    give the members a common scale.
    """
    require_heldout(config)
    aside = _aside(config, base, out)
    missing = [i for i in range(config.rm.members) if not (aside / member_name(i)).is_dir()]
    calls = [((config, base, str(aside / member_name(i))), {"member": i}) for i in missing]
    latest: dict[int, Row] = {}
    row: Row = {}
    for place, row in run_phases(
        set_up(train_reward_model),
        calls,
        share=plan.learner,
        threads=plan.threads,
        name=f"rm {config.run.name}",
        start_timeout=config.cluster.start_timeout_s,
        log=log,
    ):
        latest[place] = row
        yield together(row, latest, len(calls))
    verdict = _finish(config, aside)
    replace_directory(aside, out)
    last = together(row, latest, len(calls)) if row else {"step": 1, "total": 1}
    yield last | verdict | {"done": True}


def require_heldout(config: Config) -> None:
    """Raise ValueError where the members of an ensemble would have no lists to be compared on."""
    alone = config.rm.members == 1
    if not alone and config.data.heldout_preferences is None and config.data.heldout_fraction == 0:
        raise ValueError(
            "an ensemble needs held-out lists, on which its members get a common scale: set "
            "--data.heldout-fraction 0.1, or give --data.heldout-preferences FILE"
        )


def _aside(config: Config, base: str, out: Path) -> Path:
    """Directory of finished members until all are trained.

    Members of other settings, data or base are deleted; those that an earlier start of the same
    command left stay, also with --run.overwrite.
    """
    aside = out.with_name(f".{out.name}.members")
    read = sorted({file for path in (Path(base), *read_on_nodes(config)) for file in _files(path)})
    of = (config.run.seed, config.rm, config.data, config.model, base)
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in read]
    settings = repr((*of, facts))
    file = aside / "settings.txt"
    if not file.is_file() or file.read_text() != settings:
        shutil.rmtree(aside, ignore_errors=True)
        write_text(file, settings)
    return aside


def _files(path: Path) -> list[Path]:
    return [one for one in (path, *path.rglob("*")) if one.is_file()]


def together(row: Row, latest: dict[int, Row], calls: int) -> Row:
    """`row` with the steps of all members; those that have not begun will take as many."""
    total = sum(one["total"] for one in latest.values()) / len(latest) * calls
    return {k: v for k, v in row.items() if k != "done"} | {
        "step": sum(one["step"] for one in latest.values()),
        "total": round(total),
    }


def _finish(config: Config, out: Path) -> dict[str, float]:
    """Write ensemble.json, metrics.json and evaluation.json; the metrics of the mean."""
    names = [member_name(i) for i in range(config.rm.members)]
    held = [json.loads((out / name / EVALUATION_FILE).read_text()) for name in names]
    scores_MN = torch.tensor([one["scores"] for one in held])
    scales = [calibrate(scores_N) for scores_N in scores_MN]
    write_ensemble(out, names, scales)
    tokenizer = load_tokenizer(first_member(out), trust_remote_code=config.model.trust_remote_code)
    split = load_split(config, tokenizer)
    data = tokenise_lists(tokenizer, split.heldout, max_tokens=config.rm.max_tokens)
    scaled_MN = _scaled(scores_MN, scales)
    verdicts = {
        how: judge(combine_scores(scaled_MN, how=how), data, split.heldout) for how in COMBINATIONS
    }
    accuracies = [one["metrics"]["pair_accuracy"] for one in held]
    summary = {f"heldout/{k}": v for k, v in verdicts["mean"].metrics.items()}
    members = {
        "members": len(names),
        "member_accuracy_mean": float(np.mean(accuracies)),
        "member_accuracy_std": float(np.std(accuracies)),
        **{f"{how}/pair_accuracy": v.metrics["pair_accuracy"] for how, v in verdicts.items()},
    }
    write_json(out / METRICS_FILE, summary | members)
    write_json(out / EVALUATION_FILE, verdicts["mean"].to_dict())
    return summary


def _scaled(scores_MN: torch.Tensor, scales: list[Calibration]) -> torch.Tensor:
    return torch.stack([scale(one) for scale, one in zip(scales, scores_MN, strict=True)])
