"""Scores outside a run: a trained reward model, or an ensemble, and texts.

from rlhf_ray.rewards.scorer import Scorer
scores = Scorer("runs/demo/reward")(["Name a tea."], ["Oolong."])
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rlhf_ray.config import Dtype
from rlhf_ray.data.chat import ChatTemplate, Messages, render
from rlhf_ray.data.tokenise import tokenise_pairs
from rlhf_ray.models.ensemble import first_member, read_ensemble
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.reward_model import Calibration, calibrate, read_calibration
from rlhf_ray.rewards.ensemble import Combination, EnsembleReward
from rlhf_ray.rewards.micro_batches import Compute
from rlhf_ray.rewards.protocol import Responses
from rlhf_ray.rewards.trained import TrainedReward


class Scorer:
    """The reward model (or ensemble) in directory `path`, ready to score prompts and responses.

    Prompts are rendered with its tokenizer's chat template as in training (`chat_template`), and a
    response ends with its EOS. combine, caution: of an ensemble. ValueError where there is none.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        dtype: Dtype = "auto",
        device: str | None = None,
        chat_template: ChatTemplate = "auto",
        combine: Combination = "mean",
        caution: float = 1.0,
        trust_remote_code: bool = False,
    ) -> None:
        self.path = Path(path)
        compute = Compute.on(device, dtype, trust_remote_code=trust_remote_code)
        self._tokenizer = load_tokenizer(first_member(path), trust_remote_code=trust_remote_code)
        self._chat_template: ChatTemplate = chat_template
        ensemble = read_ensemble(path)
        if ensemble is not None:
            self._reward: EnsembleReward | TrainedReward = EnsembleReward(
                ensemble, self._tokenizer, compute, combine=combine, caution=caution
            )
        else:
            self._reward = TrainedReward(self.path, self._tokenizer, compute)

    @property
    def calibration(self) -> Calibration | None:
        """Of raw scores on samples of the reference policy, where it is stored with the model."""
        return read_calibration(self.path)

    def __call__(self, prompts: Sequence[str | Messages], responses: Sequence[str]) -> np.ndarray:
        """Raw scores, float32 [N]; a plain text is a response to the prompt ""."""
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts and {len(responses)} responses: give as many")
        return self._reward(self._batch(prompts, responses)).scores

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Raw scores of plain texts, float32 [N]."""
        return self([""] * len(texts), texts)

    def calibrate(self, prompts: Sequence[str | Messages], responses: Sequence[str]) -> Calibration:
        """Mean and deviation of the scores of these reference samples. ValueError if constant."""
        return calibrate(torch.from_numpy(self(prompts, responses)))

    def _batch(self, prompts: Sequence[str | Messages], responses: Sequence[str]) -> Responses:
        rendered = [
            render(prompt, self._tokenizer, self._chat_template) if prompt else ""
            for prompt in prompts
        ]
        rows = tokenise_pairs(self._tokenizer, rendered, responses, max_tokens=10**9)
        ids = [row.tolist() for row in rows.token_ids]
        cuts = rows.prompt_lengths.tolist()
        return Responses(
            prompt_token_ids=[row[:cut] for row, cut in zip(ids, cuts, strict=True)],
            response_token_ids=[row[cut:] for row, cut in zip(ids, cuts, strict=True)],
            prompts=rendered,
            responses=list(responses),
            ended=[True] * len(ids),
        )
