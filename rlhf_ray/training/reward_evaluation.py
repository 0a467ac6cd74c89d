"""A reward model's verdict on held-out lists: order, gaps, calibration, length, source.

Shapes: N texts, P pairs.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.algos.ranking import (
    exact_order,
    expected_calibration_error,
    gap_moments,
    kendall_tau_b,
    pair_accuracy,
)
from rlhf_ray.algos.ranking_metrics import calibration_bins
from rlhf_ray.data.chat import ChatTemplate
from rlhf_ray.data.faults import ON_BAD_ROW, OnBadRow
from rlhf_ray.data.preference_formats import PROMPT
from rlhf_ray.data.preferences import RankedList, load_lists
from rlhf_ray.models.ensemble import first_member
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.reward_model import RewardModel
from rlhf_ray.rewards.ensemble import Combination
from rlhf_ray.rewards.scorer import Scorer
from rlhf_ray.training.ranked_data import RankedData, score_all, tokenise_lists

HISTOGRAM_BINS = 24


@dataclass(frozen=True, slots=True)
class Verdict:
    """What evaluation.json holds.

    metrics: name -> value. histogram: edges and counts of the score gap. calibration: for each bin
    of confidence its mean, the share that was right, and the number of pairs. lengths: see
    `by_length`. sources: name -> pairs and pair accuracy. scores: of each text, in their order.
    """

    metrics: dict[str, float]
    histogram: dict[str, list[float]]
    calibration: list[dict[str, float]]
    lengths: dict[str, float]
    sources: dict[str, dict[str, float]]
    scores: list[float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def evaluate_lists(model: RewardModel, data: RankedData) -> dict[str, float]:
    """How well `model` orders `data`; the metrics of `algos/ranking_metrics.py`. Dropout off.

    Ties of the model count as wrong.
    """
    return list_metrics(score_all(model, data.rows), data)


def list_metrics(scores_N: Tensor, data: RankedData) -> dict[str, float]:
    """Metrics of these scores. Pairs are the data's; order and τ go by its ranks."""
    gaps_P = gaps_of(scores_N, data)
    lists = {"list_ids_N": data.list_ids_N, "ranks_N": data.ranks_N}
    mean, std = gap_moments(gaps_P)
    return {
        "heldout/pair_accuracy": float(pair_accuracy(gaps_P)),
        "heldout/exact_order": float(exact_order(scores_N, **lists)),
        "heldout/kendall_tau": float(kendall_tau_b(scores_N, **lists)),
        "heldout/gap_mean": float(mean),
        "heldout/gap_std": float(std),
        "heldout/calibration_error": float(expected_calibration_error(gaps_P)),
    }


def evaluate_file(
    model: str | Path,
    path: str,
    *,
    combine: Combination = "mean",
    chat_template: ChatTemplate = "auto",
    on_bad_row: OnBadRow = "fail",
    prompt_column: str = PROMPT,
    flag: str = ON_BAD_ROW,
    trust_remote_code: bool = False,
) -> Verdict:
    """The verdict of a saved reward model, or of an ensemble, on the lists of a file.

    prompt_column, flag: see `load_lists`.
    """
    trust = trust_remote_code
    tokenizer = load_tokenizer(first_member(model), trust_remote_code=trust)
    lists = list(
        load_lists(
            path,
            tokenizer=tokenizer,
            chat_template=chat_template,
            on_bad_row=on_bad_row,
            prompt_column=prompt_column,
            flag=flag,
        )
    )
    scorer = Scorer(model, combine=combine, chat_template="never", trust_remote_code=trust)
    scores_N = scorer(
        [one.prompt for one in lists for _ in one.responses],
        [text for one in lists for text in one.responses],
    )
    data = tokenise_lists(tokenizer, lists, max_tokens=10**6)
    return judge(torch.from_numpy(scores_N), data, lists)


def gaps_of(scores_N: Tensor, data: RankedData) -> Tensor:
    """score of the better − score of the worse for each pair of the data, [P]."""
    return scores_N[torch.from_numpy(data.better_P)] - scores_N[torch.from_numpy(data.worse_P)]


def judge(scores_N: Tensor, data: RankedData, lists: list[RankedList]) -> Verdict:
    """Everything that evaluation.json holds, of these scores of `lists`, which are `data`."""
    gaps_P = gaps_of(scores_N, data)
    lengths_N = np.array([len(text) for one in lists for text in one.responses])
    return Verdict(
        metrics={k.removeprefix("heldout/"): v for k, v in list_metrics(scores_N, data).items()},
        histogram=histogram(gaps_P.numpy()),
        calibration=calibration_curve(gaps_P),
        lengths=by_length(scores_N.numpy(), gaps_P.numpy(), lengths_N, data),
        sources=by_source(gaps_P.numpy(), data, lists),
        scores=scores_N.tolist(),
    )


def histogram(gaps_P: np.ndarray) -> dict[str, list[float]]:
    """Counts of gaps over equal bins that hold them all."""
    counts, edges = np.histogram(gaps_P, bins=HISTOGRAM_BINS)
    return {"edges": edges.tolist(), "counts": counts.astype(float).tolist()}


def calibration_curve(gaps_P: Tensor) -> list[dict[str, float]]:
    """The bins of σ(|gap|) that hold a pair: mean confidence, share right, pairs."""
    bins = zip(*(x.tolist() for x in calibration_bins(gaps_P)), strict=True)
    return [
        {"confidence": confidence / count, "right": right / count, "pairs": count}
        for confidence, right, count in bins
        if count
    ]


def by_length(
    scores_N: np.ndarray, gaps_P: np.ndarray, lengths_N: np.ndarray, data: RankedData
) -> dict[str, float]:
    """Is it just "longer is better"? Lengths are characters of the response.

    longer_is_better: what that rule alone would get; accuracy_longer and accuracy_shorter: of the
    pairs whose better text is the longer or the shorter; correlation: of score and length over
    texts. A value that no pair speaks of is left out.
    """
    more_P = lengths_N[data.better_P] - lengths_N[data.worse_P]
    right_P = gaps_P > 0
    found = {"longer_is_better": float((more_P > 0).mean())}
    for name, chosen_P in (("accuracy_longer", more_P > 0), ("accuracy_shorter", more_P < 0)):
        if chosen_P.any():
            found[name] = float(right_P[chosen_P].mean())
    if scores_N.std() > 0 and lengths_N.std() > 0:
        found["correlation"] = float(np.corrcoef(scores_N, lengths_N)[0, 1])
    return found


def by_source(
    gaps_P: np.ndarray, data: RankedData, lists: list[RankedList]
) -> dict[str, dict[str, float]]:
    """Pairs and pair accuracy of each file or data set that lists came from."""
    names = np.array([one.source for one in lists])
    source_P = np.repeat(names, np.diff(data.pair_starts))
    return {
        str(name): {
            "pairs": float((source_P == name).sum()),
            "pair_accuracy": float((gaps_P[source_P == name] > 0).mean()),
        }
        for name in sorted(set(names))
    }
