"""Held-out evaluation: what a set of sampled responses says about a policy. Pure Python."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any

from rlhf_ray.models.reward_model import Calibration


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


def evaluate(samples: Sequence[Mapping[str, Any]], calibration: Calibration) -> Evaluation:
    """Summarise samples (rows of RewardActor.describe); neither clipped nor penalised."""
    scores = [(row["reward"] - calibration.mean) / calibration.std for row in samples]
    gold = [row["gold"] for row in samples if "gold" in row]
    return Evaluation(
        score=fmean(scores),
        score_std=pstdev(scores),
        kl=fmean(row["kl"] for row in samples),
        length=fmean(row["length"] for row in samples),
        eos_fraction=fmean(row["finish_reason"] == "eos" for row in samples),
        distinct2=distinct_bigrams([row["response_token_ids"] for row in samples]),
        gold=fmean(gold) if gold else None,
    )


def calibrate(samples: Sequence[Mapping[str, Any]]) -> Calibration:
    """Mean and deviation of the reference policy's rewards. ValueError for constant ones."""
    rewards = [row["reward"] for row in samples]
    std = pstdev(rewards)
    if not std > 0:
        raise ValueError(
            f"the reward gives {rewards[0]:.4g} to all {len(rewards)} responses of the reference "
            f"policy: there is nothing to learn from. Check the reward's sources"
        )
    return Calibration(mean=fmean(rewards), std=std, samples=len(rewards))


def distinct_bigrams(rows: Sequence[Sequence[int]]) -> float:
    """Different token bigrams over all token bigrams of all rows; 0 where there are none."""
    bigrams = [pair for row in rows for pair in pairwise(row)]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def kl_efficiency(gain: float, kl: float) -> float:
    """Δ / √(2·KL): 1 is what an ideal exponential tilt of a normal score buys for its KL."""
    return gain / math.sqrt(2 * kl) if kl > 0 else 0.0
