"""Rollouts in, their scores out, as Arrow tables."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from rlhf_ray.algos.rewards import clip_scores, normalise_scores, penalise_missing_eos
from rlhf_ray.data.chat import Messages
from rlhf_ray.data.ids import HELDOUT, TRAIN, unpack
from rlhf_ray.data.schemas import EOS, score_columns
from rlhf_ray.models.reward_model import Calibration
from rlhf_ray.rewards.combine import CombinedReward
from rlhf_ray.rewards.protocol import Responses

Asked = Mapping[int, Sequence[str | Messages | None]]


def score_table(
    reward: CombinedReward,
    rollouts: pa.Table,
    tokenizer: PreTrainedTokenizerBase,
    *,
    asked: Asked | None = None,
    calibration: Calibration | None,
    clip: float | None,
    missing_eos_penalty: float,
) -> pa.Table:
    """Columns `rollout_id`, `score`, `score_valid` (uint8) and the raw `score/<component>`.

    score = clip((Σ weight · component − mean) / std), less the penalty where the response has no
    EOS. `calibration` None: no normalisation. `clip` None: no clipping.
    """
    result = reward(responses_of(rollouts, tokenizer, asked))
    scores_B = torch.from_numpy(result.scores)
    if calibration is not None:
        scores_B = normalise_scores(scores_B, mean=calibration.mean, std=calibration.std)
    if clip is not None:
        scores_B = clip_scores(scores_B, limit=clip)
    scores_B = penalise_missing_eos(scores_B, _has_eos(rollouts), penalty=missing_eos_penalty)
    columns = {"score": scores_B.numpy(), "score_valid": result.valid}
    columns |= {f"score/{name}": values for name, values in result.components.items()}
    return score_columns(rollouts.column("rollout_id"), columns)


def responses_of(
    rollouts: pa.Table, tokenizer: PreTrainedTokenizerBase, asked: Asked | None = None
) -> Responses:
    """The rows as token ids of the policy, and as text with special tokens removed.

    asked: the prompts of the training and of the held-out split as they were given, by prompt id.
    Without it, or where it has None, a prompt is the text of its tokens.
    """
    prompts = rollouts.column("prompt_token_ids").to_pylist()
    responses = rollouts.column("response_token_ids").to_pylist()
    prompt_texts = _texts(prompts, tokenizer)
    wholes = _texts([p + r for p, r in zip(prompts, responses, strict=True)], tokenizer)
    alone = _texts(responses, tokenizer)
    return Responses(
        prompt_token_ids=prompts,
        response_token_ids=responses,
        prompts=[
            text if given is None else given
            for text, given in zip(prompt_texts, _given(rollouts, asked), strict=True)
        ],
        responses=[_rest(*texts) for texts in zip(wholes, prompt_texts, alone, strict=True)],
        ended=_has_eos(rollouts).tolist(),
    )


def _given(rollouts: pa.Table, asked: Asked | None) -> Iterator[str | Messages | None]:
    ids = (rollouts.column(name).to_pylist() for name in ("rollout_id", "prompt_id"))
    for packed, prompt in zip(*ids, strict=True):
        split = HELDOUT if unpack(packed).split == HELDOUT else TRAIN
        yield None if asked is None else asked[split][prompt]


def _texts(rows: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return tokenizer.batch_decode(rows, **settings) if rows else []


def _rest(whole: str, prompt: str, alone: str) -> str:
    """The response as it follows the prompt: some tokenizers strip the space a text begins with."""
    return whole[len(prompt) :] if whole.startswith(prompt) else alone


def _has_eos(rollouts: pa.Table) -> torch.Tensor:
    reasons = rollouts.column("finish_reason").to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.asarray(reasons == EOS, dtype=bool))
