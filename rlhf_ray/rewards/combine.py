"""The sources of `config.reward` as one reward: Σ weight · score, and each source's own score."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_ray.config import ChatTemplate, Dtype, RewardSource
from rlhf_ray.models.ensemble import read_ensemble
from rlhf_ray.rewards.classifier import ClassifierReward
from rlhf_ray.rewards.ensemble import EnsembleReward
from rlhf_ray.rewards.function import FunctionReward
from rlhf_ray.rewards.micro_batches import Compute
from rlhf_ray.rewards.protocol import Responses, RewardFunction, Scores
from rlhf_ray.rewards.trained import TrainedReward


@dataclass(frozen=True, slots=True)
class Source:
    """One source: `name` is unique in its combination, `call` scores, `weight` is its factor."""

    name: str
    call: RewardFunction
    weight: float


@dataclass(frozen=True, slots=True)
class CombinedScores:
    """scores float32 [N] = Σ weight · component; valid bool [N]; components: name -> [N]."""

    scores: np.ndarray
    valid: np.ndarray
    components: dict[str, np.ndarray]


class CombinedReward:
    """Sources in the order of the config. A row is valid where it is to every source."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)

    @property
    def names(self) -> list[str]:
        """The components, in the order of the config."""
        return [source.name for source in self._sources]

    def total(self, components: Mapping[str, float]) -> float:
        """Σ weight · component of one response."""
        return sum(source.weight * components[source.name] for source in self._sources)

    def __call__(self, batch: Responses) -> CombinedScores:
        """Score `batch`. ValueError names the source, the prompt and the fault."""
        total = np.zeros(len(batch), dtype=np.float64)
        valid = np.ones(len(batch), dtype=bool)
        components = {}
        for source in self._sources:
            result = source.call(batch)
            _require_finite(source.name, result, batch)
            total += source.weight * result.scores.astype(np.float64)
            valid &= result.valid
            components[source.name] = result.scores
        return CombinedScores(scores=total.astype(np.float32), valid=valid, components=components)

    def close(self) -> None:
        """End the processes of every source."""
        for source in self._sources:
            source.call.close()


def build(
    sources: Sequence[RewardSource],
    policy_tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: Dtype = "auto",
    device: str | None = None,
    chat_template: ChatTemplate = "auto",
    trust_remote_code: bool = False,
) -> CombinedReward:
    """`config.reward.sources`, loaded and started. device None: see `device_here`.

    chat_template: whether reward models with another tokenizer than the policy's render prompts.

    ValueError: no source at all, a model that is missing or does not fit, a function that cannot be
    imported. Nothing that was started stays then.
    """
    if not sources:
        raise ValueError(
            "there is no reward: reward.sources is empty and the run has no reward model; give "
            "data.preferences to train one, or a source, for example a function of your own"
        )
    compute = Compute.on(device, dtype, trust_remote_code=trust_remote_code)
    built: list[Source] = []
    try:
        for name, source in zip(unique_names([s.name for s in sources]), sources, strict=True):
            call = build_source(source, policy_tokenizer, compute, chat_template)
            built.append(Source(name=name, call=call, weight=source.weight))
    except BaseException:  # also Ctrl-C: no process may stay
        CombinedReward(built).close()
        raise
    return CombinedReward(built)


def build_source(
    source: RewardSource,
    policy_tokenizer: PreTrainedTokenizerBase,
    compute: Compute,
    chat_template: ChatTemplate = "auto",
) -> RewardFunction:
    """One source alone."""
    if source.function:
        return FunctionReward(
            source.function,
            processes=source.processes,
            timeout_s=source.timeout_s,
            on_error=source.on_error,
            default=source.default,
        )
    if source.classifier:
        return ClassifierReward(source.classifier, compute, label=source.label)
    assert source.model is not None
    if ensemble := read_ensemble(source.model):
        return EnsembleReward(
            ensemble,
            policy_tokenizer,
            compute,
            combine=source.combine,
            caution=source.caution,
            chat_template=chat_template,
        )
    return TrainedReward(Path(source.model), policy_tokenizer, compute, chat_template)


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, a repeated one numbered from its second on: reward, reward_2, reward_3."""
    taken, seen = set(names), Counter[str]()
    result = []
    for name in names:
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}_{seen[name]}"
        while seen[name] > 1 and unique in taken:
            seen[name] += 1
            unique = f"{name}_{seen[name]}"
        taken.add(unique)
        result.append(unique)
    return result


def _require_finite(name: str, result: Scores, batch: Responses) -> None:
    bad = np.flatnonzero(~np.isfinite(result.scores))
    if len(bad):
        row = bad[0]
        raise ValueError(
            f"reward {name!r} scored {result.scores[row]} for prompt "
            f"{batch.prompt_texts()[row][:80]!r} "
            f"and response {batch.responses[row][:80]!r} ({len(bad)} of {len(batch)} are not "
            f"finite): its weights are damaged or overflow; try model.dtype float32"
        )
