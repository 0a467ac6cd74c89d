"""What Ray costs: a generator actor against its bare engine, a version against a copy of its bytes.

python jobs/bench_actor.py --model DIR

Actor and bare engine take turns with the same prompts and seeds. Then a learner packs versions and
puts them into the object store, and the generator pulls, verifies and loads them: without probes,
and with them (both ends compute log-probabilities then). The last line is JSON with medians: tokens
a second, milliseconds.
"""

import dataclasses
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import ray
import tyro

from rlhf_ray import cli
from rlhf_ray.actors.generator import GeneratorActor, GeneratorSpec, Order
from rlhf_ray.actors.learner import LearnerActor, LearnerSpec
from rlhf_ray.actors.presence import CONCURRENCY
from rlhf_ray.config import PPO
from rlhf_ray.data.ids import TRAIN, RolloutKey, Version, rollout_id, sampling_seed
from rlhf_ray.generators.environment import torch_environment
from rlhf_ray.generators.protocol import Request, Sampling
from rlhf_ray.generators.registry import BACKENDS
from rlhf_ray.orchestration.session import ray_session


@dataclasses.dataclass(frozen=True)
class Options:
    model: str
    """Directory of a causal language model."""
    dtype: str = "float32"
    """Type of the weights."""
    batch: int = 128
    """Rollouts of one turn."""
    shard: int = 16
    """Rollouts of one call to the actor."""
    prompt_len: int = 16
    """Tokens of a prompt."""
    response: int = 64
    """Tokens of a response, exactly."""
    repeats: int = 7
    """Turns that count, of each."""
    threads: int = os.cpu_count() or 1
    """Of an engine."""


class Bare:
    """The engine alone in a process, stepped by a plain loop."""

    def __init__(self, spec: GeneratorSpec) -> None:
        self._spec = spec
        self._engine = BACKENDS[spec.backend].make(
            spec.model_path,
            sampling=spec.sampling,
            version=Version(0, 0),
            dtype=spec.dtype,
            max_model_len=spec.max_model_len,
            max_num_seqs=spec.max_in_flight,
            kv_cache_mb=spec.kv_cache_mb,
        )

    def rate(self, order: Order) -> float:
        """Tokens per second of the engine, calls not counted."""
        requests = [
            Request(rollout_id(key), prompt, sampling_seed(self._spec.run_seed, key))
            for key, prompt in zip(order.keys, order.prompts, strict=True)
        ]
        began = time.perf_counter()
        self._engine.submit(requests)
        tokens = 0
        while self._engine.has_work():
            tokens += sum(len(done.response_token_ids) for done in self._engine.step())
        return tokens / (time.perf_counter() - began)


def orders(options: Options, turn: int) -> list[Order]:
    """One turn's rollouts in shards; prompts and seeds follow from `turn`."""
    rng = np.random.default_rng(turn)
    rows = rng.integers(3, 500, (options.batch, options.prompt_len)).tolist()
    keys = [RolloutKey(TRAIN, turn, i, 0) for i in range(options.batch)]
    return [
        Order(tuple(keys[i : i + options.shard]), tuple(map(tuple, rows[i : i + options.shard])))
        for i in range(0, options.batch, options.shard)
    ]


def alternate(options: Options, bare: Any, actor: Any) -> dict[str, float]:
    """Medians over turns of tokens a second: bare, through the actor, and their ratio."""
    rates: dict[str, list[float]] = {"bare": [], "actor": []}
    for turn in range(options.repeats + 1):
        shards = orders(options, turn)
        whole = Order(
            tuple(key for shard in shards for key in shard.keys),
            tuple(prompt for shard in shards for prompt in shard.prompts),
        )
        rates["bare"].append(ray.get(bare.rate.remote(whole)))
        began = time.perf_counter()
        calls = [actor.generate.options(num_returns=2).remote(shard) for shard in shards]
        metas = ray.get([meta for _, meta in calls])
        tokens = sum(meta.tokens for meta in metas)
        rates["actor"].append(tokens / (time.perf_counter() - began))
    medians = {name: statistics.median(found[1:]) for name, found in rates.items()}
    return {f"{name}_tokens_per_s": rate for name, rate in medians.items()} | {
        "actor_to_bare": medians["actor"] / medians["bare"]
    }


def copy_seconds(nbytes: int) -> float:
    """Of a copy of so many bytes into memory that is there already."""
    source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    times = []
    for _ in range(21):
        began = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def publish(learner: Any, actor: Any, step: int) -> tuple[float, int]:
    """(seconds from the decision to publish until the generator holds the version, its bytes)."""
    began = time.perf_counter()
    manifest = ray.get(learner.pack.remote(Version(0, step)))
    count = len(manifest.sizes)
    refs = learner.take_objects.options(num_returns=count).remote()
    ray.get(actor.load.remote(manifest, [refs] if count == 1 else list(refs)))
    return time.perf_counter() - began, manifest.bytes


def learner_actor(options: Options, probes: tuple[tuple[int, ...], ...]) -> Any:
    """A learner of one rank, started."""
    spec = LearnerSpec(
        ppo=PPO(critic="shared"),
        policy_path=options.model,
        critic_path=None,
        dtype="auto",
        weights_dtype=options.dtype,
        temperature=1.0,
        run_seed=0,
        probes=probes,
    )
    environment = {"env_vars": torch_environment(options.threads)}
    learner = ray.remote(concurrency_groups=CONCURRENCY)(LearnerActor)
    actor = learner.options(num_cpus=0, runtime_env=environment).remote(0, 1, spec)
    ray.get(actor.start.remote(ray.get(actor.address.remote())))
    return actor


def weights(options: Options, actor: Any) -> dict[str, float]:
    """Medians of publish + load, in milliseconds, and the bytes of a version."""
    rng = np.random.default_rng(0)
    probes = tuple(tuple(row) for row in rng.integers(3, 500, (3, 72)).tolist())
    result: dict[str, float] = {}
    for name, sequences in (("plain", ()), ("probed", probes)):
        learner = learner_actor(options, sequences)
        found = [publish(learner, actor, step) for step in range(1, options.repeats + 3)]
        result[f"{name}_ms"] = 1e3 * statistics.median(seconds for seconds, _ in found[2:])
        result["mb"] = found[0][1] / 1e6
        ray.kill(learner)
    return result


def run(options: Options) -> dict[str, Any]:
    """Both measurements on one Ray."""
    spec = GeneratorSpec(
        backend="vllm",
        model_path=options.model,
        sampling=Sampling(1.0, options.response, eos_token_ids=(0,), ignore_eos=True),
        dtype=options.dtype,
        kv_cache_mb=256,
        max_model_len=max(128, options.prompt_len + options.response),
        max_in_flight=options.batch,
        run_seed=0,
        start_timeout=300.0,
    )
    environment = {"env_vars": BACKENDS[spec.backend].environment(options.threads)}
    bare = ray.remote(Bare).options(num_cpus=0, runtime_env=environment).remote(spec)
    actor = (
        ray.remote(GeneratorActor)
        .options(num_cpus=0, max_concurrency=32, runtime_env=environment)
        .remote("bench", spec)
    )
    ray.get(actor.ready.remote())
    result = {**dataclasses.asdict(options), **alternate(options, bare, actor)}
    ray.kill(bare)  # an idle engine wakes hundreds of times a second; a run has no second one
    result |= weights(options, actor)
    copy_ms = 1e3 * copy_seconds(int(result["mb"] * 1e6))
    return result | {"copy_ms": copy_ms, "bound_ms": 3 * copy_ms + 30}


def main() -> int:
    """Measure and print."""
    options = tyro.cli(Options, prog="jobs/bench_actor.py", description=cli.described(__doc__))
    with ray_session():
        print(json.dumps(run(options)))
    return 0


if __name__ == "__main__":
    cli.run(main)
