"""A generator as an actor on a real Ray: what it loads is verified, what it writes is seeded."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import ray

from rlhf_ray.actors.generator import GeneratorActor, GeneratorSpec, Order, ProbeMismatch
from rlhf_ray.data.ids import RolloutKey, Version, rollout_id, sampling_seed
from rlhf_ray.generators.protocol import Generator, Request, Sampling
from rlhf_ray.generators.registry import BACKENDS
from rlhf_ray.weights import object_store
from rlhf_ray.weights.buckets import Manifest, Probe
from tests.contracts import models
from tests.contracts.actions import generate, published

SEED = 3  # of the run
PROBED = (5, 6, 7, 8, 9, 10)
KEYS = tuple(RolloutKey(0, 5, prompt, 0) for prompt in range(4))
PROMPTS = ((3, 4, 5), (6, 7), (8, 9, 10, 11), (12,))
SAMPLING = Sampling(1.0, 8, (models.EOS,))

pytestmark = pytest.mark.usefixtures("joined")


@dataclass
class World:
    """The actor, an engine of this process that has the new weights, and they as a version."""

    actor: Any
    engine: Generator
    manifest: Manifest
    buckets: list[Any]

    def load(self, manifest: Manifest, buckets: list[Any]) -> Version:
        refs = [ray.put(bucket) for bucket in buckets]
        return ray.get(self.actor.load.remote(manifest, refs), timeout=60)


@pytest.fixture(scope="module")
def world(joined: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    start, new = (tmp_path_factory.mktemp(name) for name in ("start", "new"))
    models.make("qwen2", start, seed=0)
    models.make("qwen2", new, seed=1)
    engine = BACKENDS["transformers"].make(
        str(new),
        sampling=SAMPLING,
        version=Version(0, 1),
        dtype="float32",
        max_model_len=64,
        max_num_seqs=8,
        kv_cache_mb=16,
    )
    (logprobs,) = engine.token_logprobs([PROBED])
    offer = object_store.offer(
        Version(0, 1),
        published(str(new)).items(),
        dtype="float32",
        bucket_bytes=16_384,
        probes=[Probe(PROBED, tuple(logprobs.tolist()))],
    )
    assert len(offer.objects) > 2, "a version of several objects, as a real model's"
    spec = GeneratorSpec(
        backend="transformers",
        model_path=str(start),
        sampling=SAMPLING,
        dtype="float32",
        kv_cache_mb=16,
        max_model_len=64,
        max_in_flight=8,
        run_seed=SEED,
        start_timeout=60.0,
    )
    remote = ray.remote(GeneratorActor).options(num_cpus=0, max_concurrency=4)
    actor = remote.remote("generator-0", spec)
    yield World(actor, engine, offer.manifest, list(offer.objects))
    ray.kill(actor)


def test_a_damaged_bucket_is_not_loaded(world: World) -> None:
    spoilt = tuple(np.frombuffer(one.tobytes(), np.uint8) ^ 1 for one in world.buckets[1])
    with pytest.raises(ValueError, match=r"bucket 1 of version 0\.1 is not what was published"):
        world.load(world.manifest, [world.buckets[0], spoilt, *world.buckets[2:]])
    assert ray.get(world.actor.beat.remote()).version is None


def test_rollouts_are_of_the_version_that_was_loaded_and_of_the_runs_seed(world: World) -> None:
    assert world.load(world.manifest, world.buckets) == Version(0, 1)
    table, meta = ray.get(world.actor.generate.remote(Order(KEYS, PROMPTS)))
    assert meta.oldest == Version(0, 1)
    ids = [rollout_id(key) for key in KEYS]
    seeds = [sampling_seed(SEED, key) for key in KEYS]
    requests = [Request(*row) for row in zip(ids, PROMPTS, seeds, strict=True)]
    done = generate(world.engine, requests)
    assert table.column("rollout_id").to_pylist() == ids
    for row in table.to_pylist():
        expected = done[row["rollout_id"]]
        assert row["response_token_ids"] == expected.response_token_ids.tolist()
        np.testing.assert_allclose(row["behaviour_logprobs"], expected.behaviour_logprobs, 1e-4)


def test_a_version_that_does_not_give_its_probes_is_not_served(world: World) -> None:
    (probe,) = world.manifest.probes
    wrong = replace(probe, logprobs=(probe.logprobs[0] - 0.1, *probe.logprobs[1:]))
    with pytest.raises(ProbeMismatch, match=r"version 0\.1"):
        world.load(replace(world.manifest, probes=(wrong,)), world.buckets)
