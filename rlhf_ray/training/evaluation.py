"""Held-out evaluation: what a set of sampled responses says about a policy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any

import torch

from rlhf_ray.data.schemas import EOS
from rlhf_ray.models import reward_model
from rlhf_ray.models.reward_model import Calibration

Rows = Sequence[Mapping[str, Any]]  # of RewardActor.describe


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over responses. score: reward in standard deviations of the reference policy's."""

    score: float
    score_std: float
    kl: float
    length: float
    eos_fraction: float
    distinct2: float
    gold: float | None

    def metrics(self) -> dict[str, float]:
        """As metric rows."""
        found = {
            "heldout/score": self.score,
            "heldout/score_std": self.score_std,
            "heldout/kl": self.kl,
            "heldout/length": self.length,
            "heldout/eos_fraction": self.eos_fraction,
            "heldout/distinct2": self.distinct2,
        }
        return found if self.gold is None else found | {"heldout/gold": self.gold}


def evaluate(samples: Rows, calibration: Calibration) -> Evaluation:
    """Summarise samples, one at least; neither clipped nor penalised."""
    scores = calibrated_scores(samples, calibration)
    gold = [row["gold"] for row in samples if "gold" in row]
    return Evaluation(
        score=fmean(scores),
        score_std=pstdev(scores),
        kl=fmean(row["kl"] for row in samples),
        length=fmean(row["length"] for row in samples),
        eos_fraction=fmean(row["finish_reason"] == EOS for row in samples),
        distinct2=distinct_bigrams([row["response_token_ids"] for row in samples]),
        gold=fmean(gold) if gold else None,
    )


def calibrated_scores(samples: Rows, calibration: Calibration) -> list[float]:
    """Their calibrated rewards."""
    return calibration(_rewards(samples)).tolist()


def calibrate(samples: Rows) -> Calibration:
    """Mean and deviation of the reference policy's rewards. ValueError where all are equal."""
    if not samples:
        raise ValueError(all_dropped("of the reference policy"))
    rewards = _rewards(samples)
    try:
        return reward_model.calibrate(rewards)
    except ValueError:
        raise ValueError(
            f"the reward gives {float(rewards[0]):.4g} to all {len(rewards)} responses of the "
            f"reference policy: there is nothing to learn from. Check the reward's sources"
        ) from None


def all_dropped(which: str) -> str:
    """What to tell where no response has a score."""
    return (
        f"the reward dropped all responses {which}: look at its function, or at `on_error` of its "
        f"source"
    )


def _rewards(samples: Rows) -> torch.Tensor:
    return torch.tensor([row["reward"] for row in samples], dtype=torch.float64)


def distinct_bigrams(rows: Sequence[Sequence[int]]) -> float:
    """Different token bigrams over all token bigrams of all rows; 0 where there are none."""
    bigrams = [pair for row in rows for pair in pairwise(row)]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def kl_efficiency(gain: float, kl: float) -> float:
    """Δ / √(2·KL): 1 is what an ideal exponential tilt of a normal score buys for its KL."""
    return gain / math.sqrt(2 * kl) if kl > 0 else 0.0
