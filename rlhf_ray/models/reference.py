"""The frozen reference policy: log-probabilities of responses, computed as the learner does."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from rlhf_ray.data.batching import token_budget_batches
from rlhf_ray.data.schemas import ref_columns, views
from rlhf_ray.models.actor_critic import Actor, check_head
from rlhf_ray.models.loading import cast_parameters, compute_dtype, load_causal_lm
from rlhf_ray.models.norms import use_short_norms
from rlhf_ray.models.packing import PackedRows, packs, use_packing

# Of one forward pass.
MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 65_536}


class ReferenceModel:
    """The causal language model at `path`, with parameters in `dtype` and softmax in float32.

    device None: a GPU where this process has one. ValueError where `path` holds no such model.
    """

    def __init__(
        self,
        path: str,
        *,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        temperature: float = 1.0,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = load_causal_lm(path, trust_remote_code=trust_remote_code)
        self._actor = Actor(model).to(self._device).eval()
        check_head(self._actor)
        use_short_norms(model)
        use_packing(model)
        cast_parameters(self._actor, compute_dtype(dtype, self._device))
        self._temperature = temperature

    def logprobs(self, rollouts: pa.Table) -> pa.Table:
        """`rollout_id, ref_logprobs`: log π_ref of the response tokens, logits / temperature.

        In the order of `rollouts`. Rows are cut into passes by their lengths alone, so a
        shard's log-probs are the same whoever computes them.
        """
        prompts = rows_of(rollouts, "prompt_token_ids")
        responses = rows_of(rollouts, "response_token_ids")
        result = self._of_rows(prompts, responses)
        return ref_columns(rollouts.column("rollout_id").combine_chunks(), result)

    @torch.inference_mode()
    def _of_rows(
        self, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        inputs = [np.concatenate([p, r[:-1]]) for p, r in zip(prompts, responses, strict=True)]
        budget = MICRO_BATCH_TOKENS[torch.device(self._device).type]
        result: list[np.ndarray] = [np.empty(0, np.float32)] * len(inputs)
        packed = packs(self._actor.model.base_model)
        lengths = [len(row) for row in inputs]
        for batch in token_budget_batches(lengths, budget, packed=packed):
            rows = PackedRows.of([inputs[i] for i in batch], self._device)
            spans = zip(rows.starts[1:], [len(responses[i]) for i in batch], strict=True)
            index = np.concatenate([np.arange(last - length, last) for last, length in spans])
            targets = np.concatenate([responses[i] for i in batch]).astype(np.int64)
            output = self._actor(
                rows,
                torch.from_numpy(index).to(self._device),
                torch.from_numpy(targets).to(self._device),
                temperature=self._temperature,
            )
            ends = np.cumsum([len(responses[i]) for i in batch])[:-1]
            parts = np.split(output.logprobs_N.float().cpu().numpy(), ends)
            for i, part in zip(batch, parts, strict=True):
                result[i] = part
        return result


def rows_of(table: pa.Table, name: str) -> list[np.ndarray]:
    """A list column's rows, as views of its memory: read-only."""
    values, offsets = views(table, name)
    return np.split(values.numpy(), offsets[1:-1].numpy()) if table.num_rows else []
