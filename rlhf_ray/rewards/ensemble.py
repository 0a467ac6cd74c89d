"""Several reward models trained side by side as one reward."""

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rlhf_ray.algos.ensemble import combine_scores
from rlhf_ray.config import ChatTemplate, Combination
from rlhf_ray.models.ensemble import Ensemble
from rlhf_ray.rewards.micro_batches import Compute
from rlhf_ray.rewards.protocol import Responses, Scores
from rlhf_ray.rewards.trained import TrainedReward


class EnsembleReward:
    """Each member's scores on its own scale, then their mean, smallest, or mean less λ deviations.

    The members have one tokenizer: a response is tokenised once.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        policy_tokenizer: PreTrainedTokenizerBase,
        compute: Compute,
        *,
        combine: Combination = "mean",
        caution: float = 1.0,
        chat_template: ChatTemplate = "auto",
    ) -> None:
        self._members = [
            TrainedReward(path, policy_tokenizer, compute, chat_template)
            for path in ensemble.members
        ]
        self._scales, self._combine, self._caution = ensemble.scales, combine, caution

    def __call__(self, batch: Responses) -> Scores:
        """float32 scores, all valid; they may be non-finite, which the combination refuses."""
        scores_N = combine_scores(
            torch.from_numpy(self.members_scores(batch)), how=self._combine, caution=self._caution
        )
        return Scores(scores=scores_N.numpy(), valid=np.ones(len(batch), dtype=bool))

    def members_scores(self, batch: Responses) -> np.ndarray:
        """float32 [M, N]: each member's scores, on its scale."""
        rows = self._members[0].token_ids(batch)
        pairs = zip(self._members, self._scales, strict=True)
        return np.stack(
            [(member.score_rows(rows) - scale.mean) / scale.std for member, scale in pairs]
        ).astype(np.float32)

    def close(self) -> None:
        """Nothing to end."""
