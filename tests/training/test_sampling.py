"""Sampling reserves, and makes, what a run's generators are."""

import io
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.actors.generator import make_engine
from rlhf_ray.config import Cluster, Config, Data, Rollout, Run
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.observe.console import Console
from rlhf_ray.orchestration.plan import plan
from rlhf_ray.orchestration.shares import Node
from rlhf_ray.training import sampling
from rlhf_ray.training.engine import generator_spec


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Two generators of two GPUs each; a policy at `policy`, prompts."""
    tokenizer = make_tokenizer(["some text"], 300)
    for part in (tokenizer, make_decoder(tokenizer, 64, 1, 0)):
        part.save_pretrained(tmp_path / "policy")
    (tmp_path / "prompts.txt").write_text("".join(f"some text {i}\n" for i in range(6)))
    return Config(
        run=Run(root=str(tmp_path)),
        data=Data(prompts=str(tmp_path / "prompts.txt"), heldout_fraction=0.0),
        rollout=Rollout(tensor_parallel=2),
        cluster=Cluster(generators=2),
    )


def test_each_has_a_generators_share(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def run_phases(phase: Any, calls: Any, **options: Any) -> Iterator[tuple[int, dict]]:
        asked.update(options)
        for place, ((_, _, prompts, samples), _) in enumerate(calls):
            texts = {prompt_id: ["a"] * samples for prompt_id, _ in prompts}
            yield place, {"step": len(prompts) * samples, "texts": texts}

    made = plan(config.cluster, [Node("a", "node a", 8, 6)], tensor_parallel=2)
    monkeypatch.setattr(sampling, "plan_here", lambda config: made)
    monkeypatch.setattr(sampling, "ray_session", nullcontext)
    monkeypatch.setattr(sampling, "run_phases", run_phases)
    console, out = Console("demo", stream=io.StringIO()), tmp_path / "samples.jsonl"
    policy = str(tmp_path / "policy")
    assert sampling.sample_to(config, policy, out, prompts=6, samples=2, console=console) == 12
    assert len(out.read_text().splitlines()) == 6
    assert asked["share"] == made.generator and asked["share"].gpus == 2.0
    assert asked["start_timeout"] == config.cluster.start_timeout_s


def test_its_engine_is_of_several_gpus(config: Config, tmp_path: Path) -> None:
    asked = replace(config, rollout=replace(config.rollout, backend="transformers"))
    with pytest.raises(ValueError, match=r"rollout\.tensor_parallel 2 is for rollout\.backend vll"):
        make_engine(generator_spec(asked, str(tmp_path / "policy"), "cpu"), "sample")
