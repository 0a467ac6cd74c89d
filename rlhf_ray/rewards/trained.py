"""A reward model trained here: it reads the policy's tokens where both have the same tokenizer."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf_ray.config import ChatTemplate
from rlhf_ray.data.chat import Messages, render
from rlhf_ray.data.faults import RowFault
from rlhf_ray.models.loading import load_tokenizer, positions_in
from rlhf_ray.models.packing import packs
from rlhf_ray.models.reward_model import RewardModel
from rlhf_ray.rewards.micro_batches import Compute, score_rows
from rlhf_ray.rewards.protocol import Responses, Scores
from rlhf_ray.rewards.tokens import fingerprint, retokenised, same_ids

UNSTATED = 2**31 - 1  # tokenizers in Rust take no number much larger


class TrainedReward:
    """The reward model and the tokenizer in directory `path`. Raw scores, uncalibrated.

    Where its tokenizer is not the policy's (`tokens.fingerprint`), the prompt is rendered and the
    text tokenised again, as in its training: a foreign id never reaches the model. An input longer
    than the model is cut from the left of the prompt. ValueError where the directory holds no
    reward model.
    """

    def __init__(
        self,
        path: Path,
        policy_tokenizer: PreTrainedTokenizerBase,
        compute: Compute,
        chat_template: ChatTemplate = "auto",
    ) -> None:
        self._path, self._chat_template = path, chat_template
        trust = compute.trust_remote_code
        model = RewardModel.from_pretrained(path, dtype=compute.dtype, trust_remote_code=trust)
        self._model, self._compute = model.to(compute.device), compute
        self._tokenizer = load_tokenizer(path, trust_remote_code=trust)
        self._max_tokens = longest_input(model.backbone, self._tokenizer)
        self._rows_of_embedding = model.backbone.get_input_embeddings().num_embeddings
        self.retokenises = fingerprint(self._tokenizer) != fingerprint(policy_tokenizer)

    def __call__(self, batch: Responses) -> Scores:
        """float32 scores, all valid; they may be non-finite, which the combination refuses."""
        scores = self.score_rows(self.token_ids(batch))
        return Scores(scores=scores, valid=np.ones(len(batch), dtype=bool))

    def score_rows(self, rows: list[np.ndarray]) -> np.ndarray:
        """float32 scores of token rows."""
        packed = packs(self._model.backbone)
        return score_rows(rows, self._model.score, packed=packed, compute=self._compute)

    def token_ids(self, batch: Responses) -> list[np.ndarray]:
        """What the model reads: int32 rows, one a response."""
        if self.retokenises:
            prompts = [self._rendered(prompt) for prompt in batch.prompts]
            return retokenised(prompts, batch, self._tokenizer, max_tokens=self._max_tokens)
        eos = self._tokenizer.eos_token_id
        rows = same_ids(batch, max_tokens=self._max_tokens, eos_token_id=eos)
        largest = max((int(row.max()) for row in rows), default=0)
        if largest >= self._rows_of_embedding:
            raise ValueError(
                f"the policy sampled token {largest}, which the reward model does not have (it has "
                f"{self._rows_of_embedding}, its tokenizer {len(self._tokenizer)}): the policy's "
                f"head is wider than its tokenizer; use the model that the reward model grew from"
            )
        return rows

    def close(self) -> None:
        """Nothing to end."""

    def _rendered(self, prompt: str | Messages) -> str:
        """As in this model's training: by its own tokenizer's template."""
        try:
            return render(prompt, self._tokenizer, self._chat_template)
        except RowFault as fault:
            raise ValueError(
                f"a prompt cannot be put to the reward model {self._path}: {fault}"
            ) from None


def longest_input(model: nn.Module, tokenizer: Any) -> int:
    """Tokens the model takes: its positions that are not kept for padding, as far as known.

    `UNSTATED` where neither the model nor its tokenizer says.
    """
    stated = tokenizer.model_max_length
    limits = [UNSTATED, stated if stated > 0 else UNSTATED]
    if (positions := positions_in(model)) is not None:
        limits.append(positions)
    return int(min(limits))
