"""Speed of the learner alone: its whole update, and a scoring pass, against the device's products.

python jobs/bench_learner.py --device cpu --hidden 768 --layers 12 --vocab 8192
python jobs/bench_learner.py --device cuda --hidden 2048 --layers 24 --vocab 32000 --batch 256

Needs torch, transformers and this project's learner: neither Ray nor vLLM. The last line is JSON:
tokens are input tokens; `share` is useful floating-point operations a second over the rate of one
large matrix product in the same type, measured right before and after each pass; of several passes
the median. Recomputation and padding count as waste.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlhf_ray.config import PPO
from rlhf_ray.data import schemas
from rlhf_ray.data.ids import TRAIN, RolloutKey, rollout_id
from rlhf_ray.learners.build import new_critic, prepare
from rlhf_ray.learners.group import Group, set_up_torch
from rlhf_ray.learners.ppo import PPOLearner
from rlhf_ray.models.actor_critic import Actor


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--response", type=int, default=192)
    parser.add_argument("--batch", type=int, default=32, help="rollouts of one update")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--critic", choices=("none", "separate"), default="none")
    parser.add_argument("--micro-batch-tokens", type=int, default=None)
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument(
        "--updates", type=int, default=5, help="measured ones, after one to warm up"
    )
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


def decoder(args: argparse.Namespace) -> Qwen2ForCausalLM:
    """A random Qwen2-shaped decoder with heads of 64 features."""
    config = Qwen2Config(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 64,
        max_position_embeddings=args.prompt_len + args.response,
        tie_word_embeddings=True,
    )
    with torch.device(args.device):
        return Qwen2ForCausalLM(config)


def rollouts(args: argparse.Namespace) -> pa.Table:
    """A joined table of random rollouts of one length."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "rollout_id": rollout_id(RolloutKey(TRAIN, 0, i, 0)),
            "prompt_id": i,
            "sample_index": 0,
            "prompt_token_ids": rng.integers(0, args.vocab, args.prompt_len),
            "response_token_ids": rng.integers(0, args.vocab, args.response),
            "behaviour_logprobs": np.zeros(args.response, np.float32),
            "finish_reason": schemas.LENGTH,
            "version_spans": [0, 0, 0],
            "generator": "bench",
        }
        for i in range(args.batch)
    ]
    table = schemas.rollout_table(rows)
    ids = table.column("rollout_id").combine_chunks()
    refs = [np.full(args.response, -9.0, np.float32) for _ in rows]
    scores = {"score": rng.normal(size=args.batch)}
    return schemas.join(table, schemas.ref_columns(ids, refs), schemas.score_columns(ids, scores))


@dataclass(frozen=True)
class Timing:
    """Medians over several runs.

    Attributes:
        seconds: of one run.
        rate: floating-point operations a second of a large product beside it.
        share: 1 / (seconds · rate); times the run's operations it is what it reached of `rate`.
    """

    seconds: float
    rate: float
    share: float


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds of one run, on the device too."""
    began = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def product_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product: the best of five."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    timed(lambda: a @ b, device)
    return 2 * size**3 / min(timed(lambda: a @ b, device) for _ in range(5))


def measure(run: Callable[[], object], device: str, dtype: torch.dtype, *, repeats: int) -> Timing:
    """`repeats` runs after one to warm up, products before and after each.

    A shared machine changes its speed from one second to the next; neighbours see the same one.
    """
    run()
    rates = [product_rate(device, dtype)]
    seconds = []
    for _ in range(repeats):
        seconds.append(timed(run, device))
        rates.append(product_rate(device, dtype))
    beside = [fmean(pair) for pair in pairwise(rates)]
    shares = [1 / (s * rate) for s, rate in zip(seconds, beside, strict=True)]
    return Timing(median(seconds), median(rates), median(shares))


def forward_operations(args: argparse.Namespace, body: int, *, outputs: int) -> float:
    """Of one forward pass over the batch: body, causal attention, head at response tokens.

    outputs: of the head, the vocabulary for a policy and 1 for a critic.
    """
    positions = args.prompt_len + args.response - 1
    each = 2 * body + 2 * args.layers * positions * args.hidden
    return args.batch * (positions * each + args.response * 2 * outputs * args.hidden)


def main() -> int:
    args = arguments()
    exact = args.dtype == "float32"  # as in a run
    set_up_torch(threads=args.threads, deterministic=exact, strict=exact and args.device == "cuda")
    dtype = getattr(torch, args.dtype)
    model = prepare(decoder(args))
    body = sum(p.numel() for p in model.parameters()) - args.vocab * args.hidden
    separate = args.critic == "separate"
    learner = PPOLearner(
        Actor(model),
        new_critic(prepare(decoder(args)).base_model) if separate else None,
        settings=PPO(
            prompts=args.batch,
            epochs=args.epochs,
            minibatches=args.minibatches,
            estimator="gae" if separate else "reinforce_pp",
            micro_batch_tokens=args.micro_batch_tokens,
            activation_checkpointing=args.activation_checkpointing,
        ),
        seed=0,
        temperature=1.0,
        dtype=dtype,
        group=Group(torch.device(args.device)),
    )
    table = rollouts(args)
    repeats = args.updates
    update = measure(lambda: learner.update(0, table), args.device, dtype, repeats=repeats)
    scoring = measure(lambda: learner.old_pass(table), args.device, dtype, repeats=repeats)
    heads = [args.vocab, 1] if separate else [args.vocab]
    once = sum(forward_operations(args, body, outputs=outputs) for outputs in heads)
    tokens = args.batch * (args.prompt_len + args.response - 1)
    report = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "parameters": body + args.vocab * args.hidden,
        "product_tflops": update.rate / 1e12,
        "update_s": update.seconds,
        "update_tokens_per_s": tokens * args.epochs / update.seconds,
        "update_share": once * (1 + 3 * args.epochs) * update.share,
        "scoring_tokens_per_s": tokens / scoring.seconds,
        "scoring_share": once * scoring.share,
    }
    if args.device == "cuda":
        report["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
