"""The generator actor: an engine on its own thread, fed with shards; it pulls its versions."""

import os
import threading
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import ray

from rlhf_ray.actors.engine_metrics import EngineMetrics
from rlhf_ray.actors.presence import present
from rlhf_ray.config import WeightsBy
from rlhf_ray.data import schemas
from rlhf_ray.data.ids import RolloutKey, Version, rollout_id, sampling_seed
from rlhf_ray.generators.engine_thread import EngineThread
from rlhf_ray.generators.protocol import Completion, Generator, Request, Sampling
from rlhf_ray.generators.registry import BACKENDS
from rlhf_ray.weights.buckets import Manifest
from rlhf_ray.weights.paths import PATHS

# Mean difference of the probes' log-probs, in nats, between learner and engine with the same
# weights: 0.01 was seen in bfloat16, 2e-5 in float32. A tensor that is stale or missing gives more;
# the version before, in bfloat16, where an update moved the policy by more than this.
PROBE_TOLERANCE = {"float32": 5e-3, "bfloat16": 0.06}
UNLOADED = Version(0, 0)  # what an engine starts from; it serves nothing before its first load
PULL_SHARE = 0.8  # of what a load may take: the rest is for what follows, and to say who was late
LAST_WORDS = 1.0  # seconds that a failing engine's error has to reach its callers


@dataclass(frozen=True, slots=True)
class GeneratorSpec:
    """What a generator is made of; the same for all of a run.

    start_timeout: seconds after which the driver no longer waits for a load.
    """

    backend: str
    model_path: str
    sampling: Sampling
    dtype: str
    kv_cache_mb: int | None
    max_model_len: int
    max_in_flight: int
    run_seed: int
    start_timeout: float
    trust_remote_code: bool = False
    run: str = ""
    tensor_parallel: int = 1
    sleeps: bool = False
    weights_by: WeightsBy = "object_store"
    eager: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """One shard to generate: which rollouts, from which prompts, for which incarnation."""

    keys: tuple[RolloutKey, ...]
    prompts: tuple[tuple[int, ...], ...]
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class ShardMeta:
    """What the driver knows of a finished shard.

    oldest: the version of its oldest token. mixed: responses written under more than one.
    """

    rows: int
    tokens: int
    oldest: Version
    mixed: int = 0


@dataclass(frozen=True, slots=True)
class Vitals:
    """A heartbeat. silent_s: seconds since the engine's own thread last came round.

    load_s: seconds that pulling, loading and probing its version took.
    """

    silent_s: float
    in_flight: int
    tokens: int
    version: Version | None
    pid: int
    node: str
    load_s: float = 0.0


class GeneratorActor:
    """Thin shell: see EngineThread for who runs what."""

    def __init__(self, name: str, spec: GeneratorSpec) -> None:
        self.name, self.spec = name, spec
        self.version: Version | None = None
        self._load_s = 0.0
        self._metrics = EngineMetrics()
        self._thread = EngineThread(partial(make_engine, spec, name), on_failure=self._die)

    def ready(self) -> Vitals:
        """Wait until the engine is up."""
        self._thread.started.result()
        return self.beat()

    def beat(self) -> Vitals:
        """How the engine's thread is; shows the engine's metrics too."""
        self._metrics.show()
        here = present()
        return Vitals(
            silent_s=self._thread.silent_for(),
            in_flight=self._thread.in_flight(),
            tokens=self._thread.tokens,
            version=self.version,
            pid=here.pid,
            node=here.node,
            load_s=self._load_s,
        )

    def load(self, manifest: Manifest, refs: list[ray.ObjectRef]) -> Version:
        """Fetch a version, verify it, load it between two steps, and reproduce its probes."""
        began = time.monotonic()
        spec = self.spec
        take = PATHS[spec.weights_by].take
        load_into = take(manifest, refs, timeout=PULL_SHARE * spec.start_timeout)

        def load(engine: Generator) -> None:
            load_into(engine)
            check_probes(engine, manifest)

        self._thread.call(load)
        self.version, self._load_s = manifest.version, time.monotonic() - began
        return manifest.version

    def generate(self, order: Order) -> tuple[pa.Table, ShardMeta]:
        """Write every response of `order`; the table's rows are in its order."""
        requests = [
            Request(rollout_id(key), prompt, sampling_seed(self.spec.run_seed, key))
            for key, prompt in zip(order.keys, order.prompts, strict=True)
        ]
        completions = self._thread.generate(requests, epoch=order.incarnation)
        rows = [
            _row(key, request, completion, self.name)
            for key, request, completion in zip(order.keys, requests, completions, strict=True)
        ]
        oldest = min(Version(*row["version_spans"][1:3]) for row in rows)
        tokens = sum(len(completion.response_token_ids) for completion in completions)
        mixed = sum(len(row["version_spans"]) > 3 for row in rows)
        return schemas.rollout_table(rows), ShardMeta(len(rows), tokens, oldest, mixed)

    def void(self, incarnation: int) -> None:
        """Forget what was ordered before this incarnation, also what has yet to arrive."""
        self._thread.void(incarnation)

    def rest(self) -> None:
        """Give the GPU's memory up until the next version, where the engine can."""
        self._thread.call(lambda engine: engine.sleep())

    def _die(self, error: BaseException) -> None:
        """A failed engine is in an unknown state: its process ends, the driver makes another."""
        print(f"{self.name}: the engine failed: {type(error).__name__}: {error}", flush=True)
        threading.Timer(LAST_WORDS, os._exit, args=(1,)).start()


def make_engine(spec: GeneratorSpec, name: str) -> Generator:
    """The engine of the generator `name`, with the weights of `spec.model_path`."""
    return BACKENDS[spec.backend].make(
        spec.model_path,
        sampling=spec.sampling,
        version=UNLOADED,
        dtype=spec.dtype,
        max_model_len=spec.max_model_len,
        max_num_seqs=spec.max_in_flight,
        kv_cache_mb=spec.kv_cache_mb,
        trust_remote_code=spec.trust_remote_code,
        tensor_parallel=spec.tensor_parallel,
        sleeps=spec.sleeps,
        takes_ipc=spec.weights_by == "cuda_ipc",
        eager=spec.eager,
        metrics_as=f"{spec.run}-{name}",
    )


class ProbeMismatch(RuntimeError):
    """An engine does not give the learner's log-probs: it does not hold the version it claims."""


def check_probes(engine: Generator, manifest: Manifest) -> None:
    """Raise ProbeMismatch unless `engine` gives the log-probs that the manifest came with."""
    if not manifest.probes:
        return
    found = engine.token_logprobs([probe.token_ids for probe in manifest.probes])
    published = [logprob for probe in manifest.probes for logprob in probe.logprobs]
    off = float(np.abs(np.concatenate(found) - published).mean())
    limit = PROBE_TOLERANCE[manifest.dtype]
    if not off <= limit:
        raise ProbeMismatch(
            f"version {manifest.version}: the probes' log-probs are {off:.3g} nats off on average "
            f"(limit {limit}): the weights that were loaded are not those that were published"
        )


def _row(key: RolloutKey, request: Request, completion: Completion, generator: str) -> dict:
    return {
        "rollout_id": request.rollout_id,
        "prompt_id": key.prompt_id,
        "sample_index": key.sample_index,
        "prompt_token_ids": request.prompt_token_ids,
        "response_token_ids": completion.response_token_ids,
        "behaviour_logprobs": completion.behaviour_logprobs,
        "finish_reason": completion.finish_reason,
        "version_spans": list(completion.version_spans),
        "generator": generator,
    }
