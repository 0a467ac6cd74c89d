"""One iteration's rollouts as flat tensors, and what the update derives from them.

Shapes: B rollouts, T response positions (padded), N response tokens of all rollouts end to end.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rlhf_ray.data import schemas
from rlhf_ray.data.schemas import rows_of

COLUMNS = (
    "rollout_id",
    "prompt_id",
    "prompt_token_ids",
    "response_token_ids",
    "behaviour_logprobs",
    "finish_reason",
    "version_spans",
    "ref_logprobs",
    "score",
)


@dataclass(frozen=True)
class Rollouts:
    """Columns of the joined table. Token values lie end to end, in the order of rollout ids.

    Attributes:
        prompts, responses: numpy token ids of each rollout.
        prompt_ids_B: int64, the group of each rollout.
        starts_B1: int64 [B + 1], where each rollout's response tokens begin in [N].
        response_mask_BT: True at a response's tokens.
        behaviour_logprobs_N, ref_logprobs_N: float32.
        scores_B: float32, one a response.
        has_eos_B: True where the response ended by itself.
        token_steps_N: int64, the step of the policy version that sampled each token.
    """

    prompts: list[np.ndarray]
    responses: list[np.ndarray]
    prompt_ids_B: Tensor
    starts_B1: Tensor
    response_mask_BT: Tensor
    behaviour_logprobs_N: Tensor
    ref_logprobs_N: Tensor
    scores_B: Tensor
    has_eos_B: Tensor
    token_steps_N: Tensor

    @classmethod
    def from_table(cls, table: pa.Table) -> "Rollouts":
        """Read a joined table, sorting by rollout id: who sent which row first changes nothing.

        Raises ValueError for a missing column, an empty prompt or response, columns of another
        length, or scores and log-probabilities that are not finite.
        """
        schemas.check(table, COLUMNS)
        if not table.num_rows:
            raise ValueError("no rollout is left to learn from: the reward dropped them all")
        ids = table.column("rollout_id").to_numpy()
        if (np.diff(ids) < 0).any():
            table = table.take(np.argsort(ids, kind="stable"))
        prompts = rows_of(table, "prompt_token_ids")
        responses = rows_of(table, "response_token_ids")
        lengths = torch.tensor([len(row) for row in responses])
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        finish = np.asarray(table.column("finish_reason").to_pylist())
        rollouts = cls(
            prompts=prompts,
            responses=responses,
            prompt_ids_B=torch.from_numpy(table.column("prompt_id").to_numpy().copy()),
            starts_B1=starts,
            response_mask_BT=torch.arange(int(lengths.max())) < lengths[:, None],
            behaviour_logprobs_N=schemas.views(table, "behaviour_logprobs")[0].clone(),
            ref_logprobs_N=schemas.views(table, "ref_logprobs")[0].clone(),
            scores_B=torch.from_numpy(table.column("score").to_numpy().copy()),
            has_eos_B=torch.from_numpy(finish == schemas.EOS),
            token_steps_N=_token_steps(rows_of(table, "version_spans"), lengths),
        )
        rollouts._check(ids)
        return rollouts

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def tokens(self) -> int:
        """N, the response tokens of all rollouts."""
        return int(self.starts_B1[-1])

    @property
    def lengths_B(self) -> Tensor:
        """Response tokens of each rollout."""
        return self.starts_B1.diff()

    @property
    def input_lengths(self) -> list[int]:
        """Input positions of each rollout: the last response token predicts nothing."""
        pairs = zip(self.prompts, self.responses, strict=True)
        return [len(prompt) + len(response) - 1 for prompt, response in pairs]

    def pad(self, x_N: Tensor) -> Tensor:
        """x_BT of token values that lie end to end; 0 where masked."""
        x_BT = x_N.new_zeros(self.response_mask_BT.shape)
        x_BT[self.response_mask_BT] = x_N
        return x_BT

    def flat(self, x_BT: Tensor) -> Tensor:
        """The inverse of `pad`."""
        return x_BT[self.response_mask_BT]

    def _check(self, ids: np.ndarray) -> None:
        for name, row_lengths in (("prompts", self.prompts), ("responses", self.responses)):
            empty = [int(i) for i, row in zip(ids, row_lengths, strict=True) if not len(row)]
            if empty:
                raise ValueError(f"rollouts {empty[:5]} have empty {name}: nothing to learn from")
        for name in ("behaviour_logprobs_N", "ref_logprobs_N", "scores_B"):
            values = getattr(self, name)
            wanted = len(self) if name == "scores_B" else self.tokens
            if len(values) != wanted:
                raise ValueError(f"{name} has {len(values)} values for {wanted}")
            if not bool(values.isfinite().all()):
                raise ValueError(f"{name} holds NaN or inf: the scorer or generator is at fault")


def _token_steps(spans: list[np.ndarray], lengths: Tensor) -> Tensor:
    """The version's step at each token, from flat triples (first position, incarnation, step)."""
    steps = []
    for row, length in zip(spans, lengths.tolist(), strict=True):
        firsts, row_steps = row[0::3], row[2::3]
        steps.append(np.repeat(row_steps, np.diff(np.append(firsts, length))))
    return torch.from_numpy(np.concatenate(steps).astype(np.int64))
