"""Speed of reward model training: optimizer steps over pairs, on this machine as it is.

python jobs/bench_rm.py MODEL PAIRS.jsonl --batch 16 --max-len 256 --steps 12

PAIRS.jsonl: any format of docs/data.md, ranked lists too. What is counted is what other trainers
count: lists with a text beyond --max-len are left out (not cut), every step is a forward, a
backward, a clipped gradient and an AdamW step over --batch shuffled lists, and the first two steps
are warm-up. The last line is JSON.
"""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tyro
from transformers import PreTrainedTokenizerBase

from rlhf_ray import cli
from rlhf_ray.config import RM, Config, Dtype, Model
from rlhf_ray.data.preferences import RankedList, load_lists
from rlhf_ray.learners.group import set_up_torch
from rlhf_ray.models.device import device_here
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.observe.memory import PssSampler
from rlhf_ray.training.ranked_data import tokenise_lists
from rlhf_ray.training.reward_model import RewardTraining

WARM_UP = 2


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional]
    """Directory of a model: the backbone."""
    pairs: Annotated[str, tyro.conf.Positional]
    """Preferences, in any format."""
    batch: int = 16
    """Lists of one optimizer step."""
    max_len: int = 256
    """Lists with a text of more tokens are left out."""
    steps: int = 12
    """Optimizer steps; the first two are not counted."""
    as_pairs: bool = False
    """Expand each list to its pairs first, as a trainer that knows only pairs must."""
    dtype: Dtype = "auto"
    """Compute type."""


def main() -> int:
    options = tyro.cli(Options, prog="jobs/bench_rm.py", description=cli.described(__doc__))
    if options.steps <= WARM_UP:
        raise ValueError(f"--steps {options.steps}: the first {WARM_UP} are not counted, give more")
    set_up_torch(deterministic=device_here() == "cpu")  # as in the workers of a run
    tokenizer = load_tokenizer(options.model)
    lists = drawn(usable(options, tokenizer), options.batch * options.steps)
    config = Config(
        model=Model(dtype=options.dtype),
        rm=RM(
            epochs=1,
            lr=1e-5,
            batch_lists=options.batch,
            max_tokens=options.max_len,
            pooling="last",
        ),
    )
    with PssSampler(interval=0.5) as memory:
        training = RewardTraining(config, options.model, tokenizer, lists, [])
        ends = []
        for row in training.fit():
            ends.append(time.perf_counter())
            print(f"step {row['step']:.0f}  loss {row['loss/rank']:.4f}", flush=True)
    steps = len(ends) - WARM_UP
    seconds = ends[-1] - ends[WARM_UP - 1]
    counted = {
        "lists_per_s": options.batch * steps / seconds,
        "pairs_per_s": fmean(len(one.comparisons()) for one in lists) * options.batch * steps
        / seconds,
        "tokens_per_s": float(training.data.rows.lengths.mean()) * len(training.data.rows)
        / len(lists) * options.batch * steps / seconds,
    }  # fmt: skip
    print(json.dumps({"steps": steps, **counted, "peak_pss_mb": memory.peak_mb}))
    return 0


def usable(options: Options, tokenizer: PreTrainedTokenizerBase) -> list[RankedList]:
    """Lists none of whose texts is beyond `max_len` tokens, EOS included."""
    lists = list(load_lists(options.pairs))
    if options.as_pairs:
        lists = [pair for one in lists for pair in expanded(one)]
    lengths = tokenise_lists(tokenizer, lists, max_tokens=10**6)
    longest = np.maximum.reduceat(lengths.rows.lengths, lengths.starts[:-1])
    kept = [one for one, length in zip(lists, longest, strict=True) if length <= options.max_len]
    if not kept:
        raise ValueError(
            f"every list of {options.pairs} has a text of over {options.max_len} tokens"
        )
    print(f"{len(kept)} of {len(lists)} lists are within {options.max_len} tokens")
    return kept


def expanded(one: RankedList) -> list[RankedList]:
    """Each comparison of a list as a list of its own."""
    return [
        replace(one, responses=(one.responses[p.better], one.responses[p.worse]), ranks=(1, 2))
        for p in one.comparisons()
        if one.responses[p.better] != one.responses[p.worse]
    ]


def drawn(lists: list[RankedList], count: int) -> list[RankedList]:
    """`count` lists in random order, again from the beginning where there are fewer."""
    order = np.random.default_rng(0).permutation(len(lists))
    return [lists[order[i % len(lists)]] for i in range(count)]


if __name__ == "__main__":
    cli.run(main)
