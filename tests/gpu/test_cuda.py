"""What runs on a GPU alone. `pytest -m gpu` on a machine that has one; none of it has run yet."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from rlhf_ray.config import PPO
from rlhf_ray.data.ids import Version
from rlhf_ray.generators.protocol import Generator, Sampling
from rlhf_ray.learners.group import Group
from rlhf_ray.weights.cuda_ipc import shared
from tests.contracts import actions, models, oracle
from tests.contracts.engines import EngineProcess
from tests.learners import toys
from tests.learners.ranks import Ranks
from tests.running.jobs import TINY, succeed, summary

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here"),
]
TOLERANCE = 0.1  # nats of a log-prob, bfloat16 against float32
SETTINGS = PPO(prompts=8, epochs=2, minibatches=2, lr=1e-3)


def masters_after_an_update(group: Group, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    learner = toys.learner(settings=SETTINGS, dtype=dtype, group=group)
    learner.update(0, toys.table(rows=8))
    return {name: x.cpu() for name, x in toys.parameters(learner).items()}


def test_an_update_in_bfloat16_is_that_in_float32_but_for_rounding():
    device = torch.device("cuda")
    halves = masters_after_an_update(Group(device), torch.bfloat16)
    whole = masters_after_an_update(Group(torch.device("cpu")), torch.float32)
    before = toys.parameters(toys.learner(settings=SETTINGS))
    for name, expected in whole.items():
        moved = (expected - before[name]).abs().max()
        assert (halves[name] - before[name]).abs().max() > 0
        assert (halves[name] - expected).abs().mean() < max(moved, 1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a GPU for each rank")
def test_two_ranks_on_nccl_are_one_on_a_cpu(tmp_path: Path):
    ranks = Ranks(2, str(tmp_path), device="cuda")
    try:
        found = ranks.run(masters_after_an_update, torch.float32)[0]
    finally:
        ranks.close()
    for name, expected in masters_after_an_update(Group(), torch.float32).items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=5e-5)


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Iterator[tuple[EngineProcess, Path, dict[str, PreTrainedModel]]]:
    """vLLM on CUDA in bfloat16, and two sets of weights for it."""
    root = tmp_path_factory.mktemp("cuda")
    made = {name: models.make("qwen2", root / name, seed=i) for i, name in enumerate("ab")}
    process = EngineProcess(
        "vllm",
        str(root / "a"),
        sampling=Sampling(0.7, 24, models.EOS),
        version=Version(0, 0),
        dtype="bfloat16",
        max_model_len=models.POSITIONS,
        sleeps=True,
        takes_ipc=True,
    )
    yield process, root, made
    process.close()


SEQUENCES = [np.random.default_rng(i).integers(3, models.VOCAB, 80).tolist() for i in range(3)]


def close_to(engine: EngineProcess, model: PreTrainedModel) -> None:
    for sequence, found in zip(
        SEQUENCES, engine.call(actions.token_logprobs, SEQUENCES), strict=True
    ):
        logp_RV = oracle.distributions(model, sequence[:1], sequence[1:], 1.0)
        expected = oracle.chosen(logp_RV, sequence[1:])
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_vllm_on_cuda_gives_transformers_logprobs_before_and_after_a_load(engine):
    process, root, made = engine
    close_to(process, made["a"])
    process.call(actions.load, Version(0, 1), str(root / "b"))
    close_to(process, made["b"])


def free_bytes() -> int:
    return torch.cuda.mem_get_info()[0]


def sleep(engine: Generator) -> None:
    engine.sleep()


def test_a_sleeping_engine_gives_its_memory_up_and_wakes_as_it_was(engine):
    process, root, made = engine
    process.call(actions.load, Version(0, 2), str(root / "a"))
    awake = free_bytes()
    process.call(sleep)
    assert free_bytes() > awake + (64 << 20)
    close_to(process, made["a"])
    process.call(sleep)
    process.call(actions.load, Version(0, 3), str(root / "b"))
    close_to(process, made["b"])


def load_ipc(engine: Generator, version: Version, update: dict) -> None:
    engine.load_ipc(version, update)


def test_weights_by_cuda_ipc_are_those_that_were_sent(engine):
    process, _, made = engine
    for step, name in enumerate("ba"):
        model = made[name].to("cuda", torch.bfloat16)
        update, kept = shared(model.state_dict().items())
        process.call(load_ipc, Version(1, step), update)
        del kept
        close_to(process, made[name].to("cpu", torch.float32))


def test_a_run_whose_weights_go_by_cuda_ipc(tmp_path: Path, ray_address: str):
    place = (f"--run.root={tmp_path}", "--run.name=shared")
    flags = (*TINY, "--ppo.iterations=3", "--model.dtype=bfloat16", "--rollout.sleep")
    succeed("ppo", *place, *flags, "--cluster.weights-by=cuda_ipc")
    done = summary(tmp_path / "shared")
    assert done["generator_restarts"] == 0 and done["rollouts"]["consumed"] == 48
