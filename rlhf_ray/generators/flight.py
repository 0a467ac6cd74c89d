"""A request on its way: what it needs to start, and what has been sampled for it so far."""

from dataclasses import dataclass, field

import numpy as np

from rlhf_ray.data.ids import Version
from rlhf_ray.data.schemas import EOS, LENGTH
from rlhf_ray.generators.protocol import Completion, Request, Sampling


def check_room(request: Request, sampling: Sampling, max_model_len: int) -> None:
    """Raise ValueError for a prompt that is empty, or too long for a response of `max_tokens`."""
    prompt_len = len(request.prompt_token_ids)
    if prompt_len == 0:
        raise ValueError(
            f"the prompt of rollout {request.rollout_id} has no tokens: "
            f"leave empty prompts out, or give the tokenizer a BOS token"
        )
    if prompt_len + sampling.max_tokens > max_model_len:
        raise ValueError(
            f"the prompt of rollout {request.rollout_id} has {prompt_len} tokens, which with a "
            f"response of {sampling.max_tokens} is more than the {max_model_len} of the generator: "
            f"set --data.max-prompt-tokens or --rollout.max-response-tokens lower"
        )


@dataclass(slots=True)
class Flight:
    """One request and the tokens, log-probs and versions sampled for it so far."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[int] = field(default_factory=list)

    def add(self, token: int, logprob: float, version: Version) -> None:
        """Record one token, sampled under `version`."""
        spans = self.spans
        if not spans or spans[-1] != version.step or spans[-2] != version.incarnation:
            spans += (len(self.tokens), version.incarnation, version.step)
        self.tokens.append(token)
        self.logprobs.append(logprob)

    def completion(self, sampling: Sampling) -> Completion:
        """The finished response; it ended at EOS iff its last token is one that counts."""
        ended = not sampling.ignore_eos and self.tokens[-1] in sampling.eos_token_ids
        return Completion(
            rollout_id=self.request.rollout_id,
            response_token_ids=np.array(self.tokens, dtype=np.int32),
            behaviour_logprobs=np.array(self.logprobs, dtype=np.float32),
            finish_reason=EOS if ended else LENGTH,
            version_spans=tuple(self.spans),
        )
