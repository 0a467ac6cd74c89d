"""Tokens per second of a bare engine, without Ray: python jobs/bench_generator.py --model DIR

Random prompts and responses of exactly `--response` tokens (EOS ignored). The last line is JSON.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlhf_ray.generators.registry import BACKENDS


def main() -> None:
    """Start the engine, run `--repeats` batches, print what came out."""
    options = parse()
    backend = BACKENDS[options.backend]
    os.environ.update(backend.environment(options.threads))  # before torch is imported
    from rlhf_ray.data.ids import Version
    from rlhf_ray.generators.protocol import Sampling

    began = time.perf_counter()
    engine = backend.make(
        options.model,
        sampling=Sampling(1.0, options.response, eos_token_ids=(0,), ignore_eos=True),
        version=Version(0, 0),
        dtype=options.dtype,
        max_model_len=options.prompt_len + options.response,
        max_num_seqs=options.batch,
    )
    started = time.perf_counter()
    rates = [run(engine, options, repeat) for repeat in range(options.repeats + 1)]
    engine.close()
    result = {
        "tokens_per_s": round(statistics.median(rates[1:])),
        "all": [round(rate) for rate in rates[1:]],
        "first": round(rates[0]),
        "start_seconds": round(started - began, 2),
        **vars(options),
    }
    print(json.dumps(result))


def run(engine, options: argparse.Namespace, repeat: int) -> float:
    """Tokens per second of one batch; its prompts and seeds follow from `repeat`."""
    from rlhf_ray.generators.protocol import Request

    rng = np.random.default_rng(repeat)
    requests = [
        Request(
            rollout_id=repeat * options.batch + i,
            prompt_token_ids=rng.integers(0, options.vocab, options.prompt_len).tolist(),
            seed=int(rng.integers(1 << 62)),
        )
        for i in range(options.batch)
    ]
    began = time.perf_counter()
    engine.submit(requests)
    tokens = 0
    while engine.has_work():
        tokens += sum(len(completion.response_token_ids) for completion in engine.step())
    return tokens / (time.perf_counter() - began)


def parse() -> argparse.Namespace:
    """Flags, each with its meaning."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument("--backend", default="vllm", help="a backend of generators/registry.py")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the engine")
    parser.add_argument("--batch", type=int, default=128, help="requests of one batch")
    parser.add_argument("--prompt-len", type=int, default=16, help="tokens of a prompt")
    parser.add_argument("--response", type=int, default=64, help="tokens of a response")
    parser.add_argument("--vocab", type=int, default=512, help="prompt tokens are below this")
    parser.add_argument("--repeats", type=int, default=7, help="batches that count")
    return parser.parse_args()


if __name__ == "__main__":
    main()
