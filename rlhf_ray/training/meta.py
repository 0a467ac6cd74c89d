"""MetaRM (Wang et al. 2024, algorithm 1): the ranking gradient where responses are told apart best.

Each step climbs the difference objective on responses of the policy as it is now, takes the ranking
gradient there, and applies it where it started.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_ray.algos.metarm import difference_objective, meta_gradient
from rlhf_ray.config import Data, MetaRM
from rlhf_ray.data.samples import load_samples
from rlhf_ray.data.tokenise import TokenRows, tokenise_pairs
from rlhf_ray.training.ranked_data import scores_of
from rlhf_ray.training.reward_step import RewardStep
from rlhf_ray.training.supervised import StepSums


@dataclass(frozen=True, slots=True)
class SampleRows:
    """Responses of G prompts as token rows; starts: each prompt's first row, and their number."""

    rows: TokenRows
    starts: np.ndarray

    def of(self, prompts: list[int]) -> tuple[list[int], Tensor]:
        """Rows of some prompts, and the prompt (a place in `prompts`) of each."""
        spans = [range(self.starts[g], self.starts[g + 1]) for g in prompts]
        groups = [place for place, span in enumerate(spans) for _ in span]
        return [row for span in spans for row in span], torch.tensor(groups)


def read_samples(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    data: Data,
) -> SampleRows:
    """The samples of a file, tokenised as ranked lists are. ValueError where it holds none.

    data: how rows are read.
    """
    samples = load_samples(
        path,
        tokenizer,
        chat_template=data.chat_template,
        on_bad_row=data.on_bad_row,
        prompt_column=data.prompt_column,
    )
    sizes = [len(one.responses) for one in samples]
    rows = tokenise_pairs(
        tokenizer,
        [one.prompt for one in samples for _ in one.responses],
        [response for one in samples for response in one.responses],
        max_tokens=max_tokens,
    )
    return SampleRows(rows, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


class MetaStep:
    """A `RewardStep` whose gradient is ∇L at θ + η·∇J(θ); called in its place."""

    def __init__(self, step: RewardStep, samples: SampleRows, settings: MetaRM, seed: int) -> None:
        self._step, self._samples, self._settings = step, samples, settings
        self._prompts = _prompts_of_steps(len(samples.starts) - 1, settings.prompts, seed)

    def __call__(self, lists: list[int]) -> StepSums:
        """Gradients of one step over whole lists; what it adds up to."""
        optimizer, sums = self._step.optimizer, []

        def ascend() -> Tensor:
            rows, groups_N = self._samples.of(next(self._prompts))
            scores_N = scores_of(optimizer.compute, self._samples.rows, rows)
            objective = difference_objective(scores_N, groups_N.to(scores_N.device))
            optimizer.backward(objective)
            return objective

        def descend() -> Tensor:
            optimizer.refresh()  # the masters stand at θ' now
            sums.append(self._step(lists))
            return torch.tensor(sums[-1].means["loss/rank"][0])

        _, objective = meta_gradient(
            optimizer.masters, ascend=ascend, descend=descend, eta=self._settings.eta
        )
        found = {} if objective is None else {"meta/difference": (float(objective), 1.0)}
        return StepSums(means={**sums[0].means, **found}, amounts=sums[0].amounts)


def _prompts_of_steps(count: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Prompts of each step, every pass in a new order; for ever."""
    rng = np.random.default_rng([seed, 1])
    queue: list[int] = []
    while True:
        while len(queue) < batch:
            queue += rng.permutation(count).tolist()
        yield queue[:batch]
        queue = queue[batch:]
