"""PPO's targets and losses written out in plain Python: a list of numbers a response, no tensors.

Nothing here comes from `rlhf_ray.algos`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, pstdev, pvariance, stdev

import numpy as np
import pyarrow as pa

from rlhf_ray.config import PPO
from rlhf_ray.data import schemas
from rlhf_ray.data.ids import RolloutKey, rollout_id

ESTIMATORS = ("gae", "rloo", "grpo", "reinforce_pp")
STEP = 5  # of the update; a token of an earlier step is stale
LENGTHS = (1, 4, 7, 3, 5, 2)  # of the responses, two to a prompt

Ragged = list[list[float]]


@dataclass(frozen=True)
class Response:
    """One response; where it is a list, one entry a token."""

    prompt: int
    prompt_ids: list[int]
    ids: list[int]
    score: float
    has_eos: bool
    steps: list[int]
    behaviour: list[float]
    ref: list[float]
    old: list[float]
    values: list[float]
    entropies: list[float]

    @property
    def kl(self) -> float:
        return sum(old - ref for old, ref in zip(self.old, self.ref, strict=True))


def responses() -> list[Response]:
    """Six of them, to three prompts. The first half of each is of an older policy."""
    rng = np.random.default_rng(1)
    rows = []
    for i, length in enumerate(LENGTHS):
        stale = length // 2
        old = rng.uniform(-4, -3, length)
        rows.append(
            Response(
                prompt=i // 2,
                prompt_ids=[3, 1, 4][: i // 2 + 1],
                ids=rng.integers(0, 32, length).tolist(),
                score=float(rng.normal()),
                has_eos=i < 2,
                steps=[STEP - 1 - i % 2] * stale + [STEP] * (length - stale),
                behaviour=(old + rng.normal(0, 0.5, length)).tolist(),
                ref=(old + rng.normal(-0.1, 0.5, length)).tolist(),
                old=old.tolist(),
                values=rng.normal(size=length).tolist(),
                entropies=rng.uniform(1, 3, length).tolist(),
            )
        )
    return rows


def table_of(rows: Sequence[Response]) -> pa.Table:
    """The joined table that a learner gets of these responses."""
    records = [
        {
            "rollout_id": rollout_id(RolloutKey(0, STEP, row.prompt, i)),
            "prompt_id": row.prompt,
            "sample_index": i,
            "prompt_token_ids": row.prompt_ids,
            "response_token_ids": row.ids,
            "behaviour_logprobs": row.behaviour,
            "finish_reason": schemas.EOS if row.has_eos else schemas.LENGTH,
            "version_spans": list(chain(*((t, 0, step) for t, step in enumerate(row.steps)))),
            "generator": "oracle",
        }
        for i, row in enumerate(rows)
    ]
    rollouts = schemas.rollout_table(records)
    ids = rollouts.column("rollout_id").combine_chunks()
    scores = np.array([row.score for row in rows])
    refs = [np.array(row.ref) for row in rows]
    return schemas.join(
        rollouts, schemas.ref_columns(ids, refs), schemas.score_columns(ids, {"score": scores})
    )


def rewards(row: Response, kl_coef: float) -> list[float]:
    found = [-kl_coef * (old - ref) for old, ref in zip(row.old, row.ref, strict=True)]
    found[-1] += row.score
    return found


def discounted(x: Sequence[float], discount: float) -> list[float]:
    """Σ over i ≥ t of discount^(i − t) · x_i, for each t."""
    return [sum(discount**i * later for i, later in enumerate(x[t:])) for t in range(len(x))]


def advantages(rows: Sequence[Response], settings: PPO, *, kl_coef: float) -> Ragged:
    """Of the estimator, before whitening."""
    if settings.estimator == "gae":
        return [_gae(row, settings, kl_coef) for row in rows]
    if settings.estimator == "reinforce_pp":
        return [discounted(rewards(row, kl_coef), settings.gamma) for row in rows]
    in_reward = kl_coef if settings.estimator == "rloo" else 0.0
    scores = [row.score - in_reward * row.kl for row in rows]
    found = []
    for i, row in enumerate(rows):
        group = [scores[j] for j in range(len(rows)) if rows[j].prompt == row.prompt]
        if settings.estimator == "rloo":
            others = [s for j, s in enumerate(scores) if rows[j].prompt == row.prompt and j != i]
            found.append([scores[i] - fmean(others)] * len(row.ids))
        else:
            found.append([(scores[i] - fmean(group)) / (stdev(group) + 1e-4)] * len(row.ids))
    return found


def _gae(row: Response, settings: PPO, kl_coef: float) -> list[float]:
    following = [*row.values[1:], 0.0]
    steps = zip(rewards(row, kl_coef), row.values, following, strict=True)
    deltas = [r + settings.gamma * v_next - v for r, v, v_next in steps]
    return discounted(deltas, settings.gamma * settings.lam)


def returns(rows: Sequence[Response], settings: PPO, *, kl_coef: float) -> Ragged:
    """Of a critic: advantage + value."""
    found = advantages(rows, settings, kl_coef=kl_coef)
    return [
        [a + v for a, v in zip(advantage, row.values, strict=True)]
        for advantage, row in zip(found, rows, strict=True)
    ]


def learned_advantages(rows: Sequence[Response], settings: PPO, *, kl_coef: float) -> list[float]:
    """What the policy's loss takes: whitened where the settings say so, all tokens end to end."""
    found = flat(advantages(rows, settings, kl_coef=kl_coef))
    if not settings.whiten_advantages or settings.estimator in ("rloo", "grpo"):
        return found
    mean, variance = fmean(found), pvariance(found)
    return [(a - mean) / math.sqrt(variance + 1e-8) for a in found]


def weights(rows: Sequence[Response], *, cap: float) -> list[float]:
    return [
        min(math.exp(old - behaviour), cap)
        for row in rows
        for old, behaviour in zip(row.old, row.behaviour, strict=True)
    ]


def stats(rows: Sequence[Response], settings: PPO, *, kl_coef: float) -> dict[str, float]:
    """Of the rollouts, by their definitions in docs/metrics.md."""
    found = flat(advantages(rows, settings, kl_coef=kl_coef))
    ages = [STEP - step for row in rows for step in row.steps]
    sampled = [sum(row.behaviour) - sum(row.ref) for row in rows]
    result = {
        "kl/mean_k1": fmean(row.kl for row in rows),
        "kl/std_k1": pstdev(row.kl for row in rows),
        "kl/sampled_mean_k1": fmean(sampled),
        "kl/sampled_std_k1": pstdev(sampled),
        "entropy/mean": fmean(flat(row.entropies for row in rows)),
        "advantage/mean": fmean(found),
        "advantage/std": pstdev(found),
        "score/mean": fmean(row.score for row in rows),
        "score/std": pstdev(row.score for row in rows),
        "response/length": fmean(len(row.ids) for row in rows),
        "response/eos_fraction": fmean(row.has_eos for row in rows),
        "staleness/mean": fmean(ages),
        "staleness/max": max(ages),
    }
    if settings.estimator == "gae":
        aims = flat(returns(rows, settings, kl_coef=kl_coef))
        result["value/explained_variance"] = 1 - pvariance(found) / pvariance(aims)
    return result


def policy_loss(new: float, old: float, advantage: float, weight: float, settings: PPO) -> float:
    """Of one token."""
    ratio = math.exp(new - old)
    clipped = min(max(ratio, 1 - settings.clip_low), 1 + settings.clip_high)
    objective = min(ratio * advantage, clipped * advantage)
    if settings.dual_clip is not None and advantage < 0:
        objective = max(objective, settings.dual_clip * advantage)
    return -weight * objective


def value_loss(value: float, old: float, aim: float, clip: float) -> float:
    """Of one token."""
    near = old + min(max(value - old, -clip), clip)
    return max((value - aim) ** 2, (near - aim) ** 2) / 2


def k3(logprob: float, other: float) -> float:
    """Of KL(π ‖ other), a token being from π."""
    return math.exp(other - logprob) - 1 - (other - logprob)


def flat(parts: Iterable[Iterable[float]]) -> list[float]:
    return list(chain(*parts))
