"""Speed of the full PPO loop: samples and tokens per second over the updates after the first.

python jobs/bench_ppo.py --model DIR --batch 128 --prompt-len 16 --response 64     random prompts,
    responses of exactly that length
python jobs/bench_ppo.py --model DIR --eos --prompts FILE --response 128           real prompts, a
    line each, responses that end where they end

The reward is a reward model of the policy's own shape with a random head. What no flag says is this
project's default, so a comparison with others gives --epochs and --minibatches. The last line is
JSON: samples_per_s, tokens_per_s, mean_response, phase_seconds (of one update), peak_pss_mb, and
batch, epochs, minibatches and critic, which say how much work it was.
"""

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tyro

from rlhf_ray import cli
from rlhf_ray.config import (
    PPO,
    Checkpoint,
    Cluster,
    Config,
    Data,
    Dtype,
    Evaluate,
    Model,
    Reward,
    RewardSource,
    Rollout,
    Run,
)
from rlhf_ray.data.prompts import Prompt, Prompts, load_prompts
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.reward_model import RewardModel
from rlhf_ray.observe.console import Console
from rlhf_ray.observe.memory import PssSampler, process_tree
from rlhf_ray.observe.memory import ray_session as ray_processes
from rlhf_ray.observe.metrics import RunLog, read_metrics
from rlhf_ray.orchestration.placement import plan_here
from rlhf_ray.orchestration.session import ray_session, session_dir
from rlhf_ray.training.ppo import Start, run_ppo

PROMPTS = 1024  # at least
NEVER = 10**6


@dataclass(frozen=True)
class Options:
    model: str
    """Directory of a causal language model: of policy, reference, reward model and critic."""
    batch: int = 128
    """Responses of one update."""
    prompt_len: int = 16
    """Tokens of a random prompt."""
    response: int = 64
    """Tokens of a response: exactly so many, or with --eos at most."""
    epochs: int = PPO.epochs
    """Passes over an update's responses."""
    minibatches: int = PPO.minibatches
    """Optimizer steps of a pass."""
    critic: Literal["separate", "shared"] = PPO.critic
    """A model of its own, or a head on the policy's trunk."""
    learners: int = 1
    """Ranks of the learner group, each with all weights."""
    updates: int = 5
    """Updates; the first is not counted."""
    eos: bool = False
    """Responses end at EOS."""
    prompts: str | None = None
    """Real prompts, a line each; without it they are random."""
    dtype: Dtype = "auto"
    """Compute type of learner and scorers."""
    micro_batch_tokens: int | None = PPO.micro_batch_tokens
    """Tokens of one forward and backward pass. None: as the device suits."""


def make_config(options: Options, root: str) -> Config:
    """The loop alone: one checkpoint and one evaluation, at the end, not counted."""
    longest = options.prompt_len if options.prompts is None else Data.max_prompt_tokens
    return Config(
        run=Run(name="bench", root=root),
        data=Data(prompts=options.prompts, heldout_fraction=0.05, max_prompt_tokens=longest),
        model=Model(path=options.model, dtype=options.dtype),
        reward=Reward(sources=(RewardSource(model=f"{root}/reward"),)),
        rollout=Rollout(max_response_tokens=options.response, ignore_eos=not options.eos),
        ppo=PPO(
            iterations=options.updates,
            prompts=options.batch,
            epochs=options.epochs,
            minibatches=options.minibatches,
            critic=options.critic,
            micro_batch_tokens=options.micro_batch_tokens,
            shard_weights=False,
        ),
        cluster=Cluster(learners=options.learners),
        checkpoint=Checkpoint(every=NEVER),
        evaluate=Evaluate(every=NEVER, prompts=16),
    )


def make_prompts(options: Options, config: Config) -> Prompts:
    """Random token ids, or the lines of a file as often as a batch needs them."""
    tokenizer = load_tokenizer(options.model)
    count = max(PROMPTS, options.batch)
    if options.prompts is not None:
        loaded = load_prompts(config.data, tokenizer, config.run.seed)
        lines = list(loaded.train)
        repeated = [replace(lines[i % len(lines)], prompt_id=i) for i in range(count)]
        return replace(loaded, train=repeated)
    rng = np.random.default_rng(0)
    ids = rng.integers(10, len(tokenizer), size=(count, options.prompt_len))
    rows = [Prompt(i, "", tuple(map(int, row))) for i, row in enumerate(ids)]
    return Prompts(train=rows, heldout=rows[:16], cut=0, bad_rows=0)


def result(options: Options, root: str, peak_pss_mb: float) -> dict[str, Any]:
    """Figures over the updates after the first."""
    rows = [row for row in read_metrics(Path(root) / "bench") if row["phase"] == "ppo"]
    counted = [row for row in rows if row["step"] > 1]
    seconds = [row["time/step"] - row.get("time/evaluate", 0.0) for row in counted]
    length = fmean(row["response/length"] for row in counted)
    samples_per_s = options.batch * len(counted) / sum(seconds)
    phases = ("generate", "score", "update", "publish")
    return {
        "samples_per_s": samples_per_s,
        "tokens_per_s": samples_per_s * length,
        "mean_response": length,
        "sec_per_update": seconds,
        "phase_seconds": {p: fmean(row[f"time/{p}"] for row in counted) for p in phases},
        "peak_pss_mb": peak_pss_mb,
        "batch": options.batch,
        "epochs": options.epochs,
        "minibatches": options.minibatches,
        "critic": options.critic,
    }


def main() -> int:
    options = tyro.cli(Options, prog="jobs/bench_ppo.py", description=cli.described(__doc__))
    if options.updates < 2:
        raise ValueError(f"--updates {options.updates}: the first is not counted, give at least 2")
    console = Console("bench")
    with tempfile.TemporaryDirectory() as root:
        reward = RewardModel.from_backbone(options.model, "last", seed=0)
        reward.save_pretrained(f"{root}/reward")
        load_tokenizer(options.model).save_pretrained(f"{root}/reward")
        config = make_config(options, root)
        prompts = make_prompts(options, config)
        with ray_session():
            session = str(session_dir())
            with (
                PssSampler(lambda: process_tree() | ray_processes(session)) as memory,
                RunLog(config.dir) as log,
            ):
                start = Start(options.model, f"{root}/reward", config.reward, resume=False)
                plan = plan_here(config)
                run_ppo(config, plan, start, prompts, log=log, console=console)
        print(json.dumps(result(options, root, memory.peak_mb)))
    return 0


if __name__ == "__main__":
    cli.run(main)
