"""Log-probs by transformers' own forward pass.

Shapes: L positions, R response tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache


@torch.no_grad()
def distributions(
    model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int], temperature: float
) -> Tensor:
    """logprobs_RV: log softmax(logits / temperature) where a response token is predicted."""
    tokens_L = torch.tensor([*prompt, *response])
    logits_RV = model(tokens_L[None, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
    return torch.log_softmax(logits_RV.double() / temperature, -1)


@torch.no_grad()
def distributions_across(
    old: PreTrainedModel,
    new: PreTrainedModel,
    prompt: Sequence[int],
    response: Sequence[int],
    changed: int,
    temperature: float,
) -> Tensor:
    """The same, where `new` samples from position `changed` on and goes on from the keys and values
    that `old` computed: of the prompt and of all response tokens but the last it sampled.
    """
    tokens_L = torch.tensor([*prompt, *response])[None, :-1]
    known = len(prompt) + changed - 1
    cache = DynamicCache(config=old.config)
    before = old(tokens_L[:, :known], past_key_values=cache, use_cache=True).logits[0]
    after = new(tokens_L[:, known:], past_key_values=cache, use_cache=True).logits[0]
    logits_RV = torch.cat([before[len(prompt) - 1 :], after])
    return torch.log_softmax(logits_RV.double() / temperature, -1)


def chosen(logprobs_RV: Tensor, response: Sequence[int]) -> Tensor:
    """The log-prob of each response token."""
    return logprobs_RV.gather(1, torch.tensor(response, dtype=torch.int64)[:, None]).squeeze(1)
