"""What scores a response: texts and tokens of a batch in, one score a response out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlhf_ray.data.chat import Messages, asked


@dataclass(frozen=True, slots=True)
class Responses:
    """N responses to score, as tokens of the policy and as text (special tokens removed).

    prompts: as they were asked, before any chat template: texts, or turns.
    ended: whether the response ended by itself; its last token is then one that ends it.
    """

    prompt_token_ids: Sequence[Sequence[int]]
    response_token_ids: Sequence[Sequence[int]]
    prompts: Sequence[str | Messages]
    responses: Sequence[str]
    ended: Sequence[bool]

    def __len__(self) -> int:
        return len(self.prompts)

    def prompt_texts(self, rows: slice = slice(None)) -> list[str]:
        """The prompts without a template: turns become a transcript."""
        return [asked(prompt)[0] for prompt in self.prompts[rows]]


@dataclass(frozen=True, slots=True)
class Scores:
    """scores float32 [N]; valid bool [N]: False where the sample is to be dropped."""

    scores: np.ndarray
    valid: np.ndarray


class RewardFunction(Protocol):
    """One source of reward. Scores of a row do not depend on the other rows of the batch."""

    def __call__(self, batch: Responses) -> Scores:
        """Score `batch`. ValueError names the source, the prompt and the fault."""

    def close(self) -> None:
        """End any process it started."""
