"""Scorers: pure over frozen weights, so Ray's own restarts and retries serve them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import ray
import torch
from transformers import PreTrainedTokenizerBase

from rlhf_ray.actors.presence import LIVENESS, Presence, present
from rlhf_ray.actors.tables import fetch
from rlhf_ray.config import ChatTemplate, Dtype, Reward
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.reference import ReferenceModel
from rlhf_ray.models.reward_model import Calibration
from rlhf_ray.rewards.combine import CombinedReward, build
from rlhf_ray.rewards.function_worker import load
from rlhf_ray.rewards.table import Asked, responses_of, score_table


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """What scorers are made of. policy_path: the reference, whose tokenizer the rollouts use.

    shares_gpu: what a call held of its GPU's memory goes back to the others on it.
    """

    policy_path: str
    reward: Reward
    dtype: Dtype
    temperature: float
    chat_template: ChatTemplate = "auto"
    trust_remote_code: bool = False
    shares_gpu: bool = False

    def give_back(self) -> None:
        """To be called at the end of each call."""
        if self.shares_gpu:
            torch.cuda.empty_cache()


class ReferenceActor:
    """Log-probs of the reference policy.

    Models are loaded by the first call, not by the constructor, here and below: a fault in them
    then reaches the caller as what it is, and an actor that Ray restarted loads them again.
    """

    def __init__(self, spec: ScorerSpec) -> None:
        self._spec = spec

    @cached_property
    def _model(self) -> ReferenceModel:
        spec = self._spec
        return ReferenceModel(
            spec.policy_path,
            dtype=spec.dtype,
            temperature=spec.temperature,
            trust_remote_code=spec.trust_remote_code,
        )

    @ray.method(concurrency_group=LIVENESS)
    def beat(self) -> Presence:
        """That this process lives; answered while it scores."""
        return present()

    def ready(self) -> Presence:
        """Return once the model is loaded."""
        _ = self._model
        return present()

    def score(self, rollouts: pa.Table) -> tuple[pa.Table, Presence]:
        """`rollout_id, ref_logprobs`, and who computed them: the driver waits for that alone."""
        columns = self._model.logprobs(rollouts)
        self._spec.give_back()
        return columns, present()


class RewardActor:
    """Scores of responses: calibrated, clipped, with the missing-EOS penalty.

    What a run learns late, and what is large, comes with each call, for a restarted scorer knows no
    more than its spec. asked: a reference to what `responses_of` takes under that name, in a list,
    so that the first call alone fetches it.
    """

    def __init__(self, spec: ScorerSpec) -> None:
        self._spec = spec
        self._asked: Asked | None = None

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        spec = self._spec
        return load_tokenizer(spec.policy_path, trust_remote_code=spec.trust_remote_code)

    @cached_property
    def _reward(self) -> CombinedReward:
        return build(
            self._spec.reward.sources,
            self._tokenizer,
            dtype=self._spec.dtype,
            chat_template=self._spec.chat_template,
            trust_remote_code=self._spec.trust_remote_code,
        )

    @cached_property
    def _gold(self) -> Callable[..., list[float]] | None:
        gold = self._spec.reward.gold
        return load(gold) if gold else None

    @ray.method(concurrency_group=LIVENESS)
    def beat(self) -> Presence:
        """That this process lives; answered while it scores."""
        return present()

    def ready(self) -> Presence:
        """Return once every source is loaded."""
        _ = self._reward, self._gold
        return present()

    def score(
        self,
        rollouts: pa.Table,
        calibration: Calibration | None,
        asked: Sequence[ray.ObjectRef] = (),
    ) -> tuple[pa.Table, Presence]:
        """`rollout_id, score, score_valid, score/<source>`, and who computed them."""
        scored = score_table(
            self._reward,
            rollouts,
            self._tokenizer,
            asked=self._fetched(asked),
            calibration=calibration,
            clip=self._spec.reward.clip,
            missing_eos_penalty=self._spec.reward.missing_eos_penalty,
        )
        self._spec.give_back()
        return scored, present()

    def describe(
        self,
        shards: Sequence[tuple[ray.ObjectRef, ...]],
        limit: int | None,
        asked: Sequence[ray.ObjectRef] = (),
    ) -> tuple[list[dict[str, Any]], Presence]:
        """Scored rollouts as plain rows to look at: texts, scores, KL, length, gold.

        reward: Σ weight · component, before calibration, clipping and penalties.
        """
        table = fetch(shards).slice(0, limit)
        # What reward functions read, too.
        texts = responses_of(table, self._tokenizer, self._fetched(asked))
        rows = [
            _sample(row, prompt, response) | {"reward": self._total(row)}
            for row, prompt, response in zip(
                table.to_pylist(), texts.prompt_texts(), texts.responses, strict=True
            )
        ]
        if self._gold is not None:
            gold = self._gold_scores(rows)
            rows = [row | {"gold": value} for row, value in zip(rows, gold, strict=True)]
        return rows, present()

    def _fetched(self, asked: Sequence[ray.ObjectRef]) -> Asked | None:
        if asked and self._asked is None:
            (self._asked,) = ray.get(list(asked))
        return self._asked

    def _total(self, row: dict[str, Any]) -> float:
        return self._reward.total({name: row[f"score/{name}"] for name in self._reward.names})

    def _gold_scores(self, rows: list[dict[str, Any]]) -> list[float]:
        """ValueError, naming the function, where it raises or gives no number for a row."""
        assert self._gold is not None
        name = f"reward.gold {self._spec.reward.gold}"
        try:
            prompts, responses = ([row[key] for row in rows] for key in ("prompt", "response"))
            gold = [float(score) for score in self._gold(prompts, responses)]
        except Exception as error:  # whatever the user's function raises
            raise ValueError(f"{name} raised {type(error).__name__}: {error}") from error
        if len(gold) != len(rows):
            raise ValueError(f"{name} gave {len(gold)} scores for {len(rows)} samples")
        if not all(map(math.isfinite, gold)):
            raise ValueError(f"{name} gave NaN or inf: a gold score is a number")
        return gold


def _sample(row: dict[str, Any], prompt: str, response: str) -> dict[str, Any]:
    """One joined row with its texts. kl: Σ(behaviour − reference) of its tokens, in nats."""
    tokens = row["response_token_ids"]
    return {
        "rollout_id": row["rollout_id"],
        "prompt_id": row["prompt_id"],
        "prompt": prompt,
        "response": response,
        "response_token_ids": tokens,
        "finish_reason": row["finish_reason"],
        "length": len(tokens),
        "kl": sum(row["behaviour_logprobs"]) - sum(row["ref_logprobs"]),
        **{name: value for name, value in row.items() if name.split("/")[0] == "score"},
    }
