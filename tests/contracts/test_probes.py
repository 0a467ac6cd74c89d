"""An engine that does not hold the version it claims is found out, whatever else is in flight."""

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_ray.actors.generator import ProbeMismatch, check_probes
from rlhf_ray.data.ids import Version
from rlhf_ray.generators.protocol import Generator, Request, Sampling
from rlhf_ray.generators.registry import BACKENDS
from rlhf_ray.weights.buckets import Manifest, Probe
from tests.contracts import models
from tests.contracts.actions import published

SEQUENCES = [(5, 6, 7, 8, 9, 10), (11, 12, 13)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    """Two sets of weights."""
    directory = tmp_path_factory.mktemp("probes")
    for seed in (0, 1):
        models.make("qwen2", directory / str(seed), seed=seed)
    return [directory / "0", directory / "1"]


def engine_of(path: Path, dtype: str = "float32") -> Generator:
    return BACKENDS["transformers"].make(
        str(path),
        sampling=Sampling(1.0, 8, (models.EOS,)),
        version=Version(0, 0),
        dtype=dtype,
        max_model_len=64,
        max_num_seqs=4,
        kv_cache_mb=16,
    )


@pytest.fixture
def engine(paths: list[Path]) -> Generator:
    return engine_of(paths[0])


def manifest_of(engine: Generator) -> Manifest:
    found = engine.token_logprobs(SEQUENCES)
    probes = (Probe(ids, tuple(x.tolist())) for ids, x in zip(SEQUENCES, found, strict=True))
    return Manifest(Version(0, 1), "float32", (), (), (), tuple(probes))


def test_what_was_published_passes_also_while_requests_are_in_flight(engine: Generator) -> None:
    manifest = manifest_of(engine)
    engine.submit([Request(1, (3, 4, 5), seed=1)])
    engine.step()
    check_probes(engine, manifest)
    check_probes(engine, replace(manifest, probes=()))


def test_an_engine_in_bfloat16_passes_with_its_own_weights_alone(paths: list[Path]) -> None:
    """The probes are a learner's, in float32."""
    manifest = replace(manifest_of(engine_of(paths[0])), dtype="bfloat16")
    check_probes(engine_of(paths[0], "bfloat16"), manifest)
    with pytest.raises(ProbeMismatch, match=r"limit 0\.06"):
        check_probes(engine_of(paths[1], "bfloat16"), manifest)


def test_other_weights_are_found_out(engine: Generator, paths: list[Path]) -> None:
    manifest = manifest_of(engine)
    engine.load(Version(0, 1), published(str(paths[1])).items())
    with pytest.raises(ProbeMismatch, match=r"version 0\.1: .* nats off .*limit 0\.005.*not those"):
        check_probes(engine, manifest)


def test_a_single_tensor_that_stayed_as_it_was_is_found_out(engine: Generator, paths: list[Path]):
    """Of weights that differ as much as these; those of two updates may differ by less."""
    manifest = manifest_of(engine_of(paths[1]))
    old, new = published(str(paths[0])), published(str(paths[1]))
    assert len(new) == 26
    for name in new:
        engine.load(Version(0, 1), (new | {name: old[name]}).items())
        with pytest.raises(ProbeMismatch):
            check_probes(engine, manifest)
    engine.load(Version(0, 1), new.items())
    check_probes(engine, manifest)


@pytest.mark.parametrize("wrong", [-0.1, float("nan")])
def test_a_log_prob_that_is_not_the_engines_is_found_out(engine: Generator, wrong: float) -> None:
    manifest = manifest_of(engine)
    first, second = manifest.probes
    spoilt = replace(first, logprobs=(first.logprobs[0] + wrong, *first.logprobs[1:]))
    with pytest.raises(ProbeMismatch):
        check_probes(engine, replace(manifest, probes=(spoilt, second)))
