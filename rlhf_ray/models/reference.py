"""The frozen reference policy: log-probabilities of responses, computed as the learner does."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from rlhf_ray.config import Dtype
from rlhf_ray.data.batching import token_budget_batches
from rlhf_ray.data.schemas import ref_columns, rows_of
from rlhf_ray.models.actor_critic import Actor, check_head
from rlhf_ray.models.device import device_here
from rlhf_ray.models.loading import cast_parameters, compute_dtype, load_causal_lm
from rlhf_ray.models.norms import use_short_norms
from rlhf_ray.models.packing import packs, response_rows, use_packing

# Of one forward pass.
MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 65_536}


class ReferenceModel:
    """The causal language model at `path`, with parameters in `dtype` and softmax in float32.

    device None: see `device_here`. ValueError where `path` holds no such model.
    """

    def __init__(
        self,
        path: str,
        *,
        dtype: Dtype = "auto",
        temperature: float = 1.0,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._device = device or device_here()
        model = load_causal_lm(path, trust_remote_code=trust_remote_code)
        self._actor = Actor(model).eval()
        check_head(self._actor)
        use_short_norms(model)
        use_packing(model)
        # Cast here first: of a large model float32 may not fit where bfloat16 does.
        cast_parameters(self._actor, compute_dtype(dtype, self._device)).to(self._device)
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
        budget = MICRO_BATCH_TOKENS[torch.device(self._device).type]
        result: list[np.ndarray] = [np.empty(0, np.float32)] * len(responses)
        packed = packs(self._actor.model.base_model)
        lengths = [len(p) + len(r) - 1 for p, r in zip(prompts, responses, strict=True)]
        for batch in token_budget_batches(lengths, budget, packed=packed):
            mine = [responses[i] for i in batch]
            passed = response_rows([prompts[i] for i in batch], mine, self._device)
            output = self._actor(*passed, temperature=self._temperature)
            ends = np.cumsum([len(response) for response in mine])[:-1]
            parts = np.split(output.logprobs_N.float().cpu().numpy(), ends)
            for i, part in zip(batch, parts, strict=True):
                result[i] = part
        return result
