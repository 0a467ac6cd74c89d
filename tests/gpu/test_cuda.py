"""What runs on a GPU alone. `pytest -m gpu` on a machine that has one; none of it has run yet."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rlhf_ray.config import PPO
from rlhf_ray.data.ids import Version
from rlhf_ray.generators.protocol import Generator, Sampling
from rlhf_ray.learners.group import Group, set_up_torch, this_device
from rlhf_ray.models.attention import blocks_of, packed_attention
from rlhf_ray.models.norms import use_short_norms
from rlhf_ray.training.supervised import Best
from rlhf_ray.weights.cuda_ipc import shared
from tests.contracts import actions, models, oracle
from tests.contracts.engines import EngineProcess
from tests.learners import toys
from tests.learners.ranks import Ranks
from tests.running.jobs import TINY, succeed, summary
from tests.running.nodes import several_nodes

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
    halves = masters_after_an_update(Group(this_device()), torch.bfloat16)
    whole = masters_after_an_update(Group(torch.device("cpu")), torch.float32)
    before = toys.parameters(toys.learner(settings=SETTINGS))
    for role in ("policy", "critic"):  # on a CPU .9997 and 1.0003, 1.0000 and 1.0004
        names = [name for name in whole if name.startswith(role)]
        ours, theirs = (
            torch.cat([(moved[name] - before[name]).flatten() for name in names])
            for moved in (halves, whole)
        )
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.99
        assert 0.98 < ours.norm() / theirs.norm() < 1.02


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a GPU for each rank")
def test_two_ranks_on_nccl_are_one_on_a_cpu(tmp_path: Path):
    ranks = Ranks(2, str(tmp_path), device="cuda")
    try:
        found = ranks.run(masters_after_an_update, torch.float32)[0]
    finally:
        ranks.close()
    for name, expected in masters_after_an_update(Group(), torch.float32).items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=5e-5)


def exact_update(group: Group) -> dict[str, torch.Tensor]:
    set_up_torch(strict=True)
    learner = toys.learner(settings=SETTINGS, group=group)
    learner.update(0, toys.table(rows=8, prompt_len=(20, 30), response_len=(60, 90)))
    return {name: x.cpu() for name, x in toys.parameters(learner).items()}


def test_an_exact_update_gives_the_same_bits_twice(tmp_path: Path):
    ranks = Ranks(1, str(tmp_path), device="cuda")
    try:
        first, second = (ranks.run(exact_update)[0] for _ in range(2))
    finally:
        ranks.close()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_layers_that_run_again_need_less_memory():
    def peak(activation_checkpointing: bool) -> int:
        settings = replace(SETTINGS, activation_checkpointing=activation_checkpointing)
        learner = toys.learner(settings=settings, group=Group(this_device()))
        torch.cuda.reset_peak_memory_stats()
        learner.update(0, toys.table(rows=8, response_len=(90, 100)))
        return torch.cuda.max_memory_allocated()

    assert peak(True) < peak(False)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_that_of_the_cpu(window: int | None, dtype: torch.dtype):
    torch.manual_seed(0)
    lengths = (3, 40, 9, 41)
    query = torch.randn(1, 8, sum(lengths), 64)
    key, value = torch.randn(2, 1, 2, sum(lengths), 64)
    wanted, found = (
        packed_attention(
            torch.nn.Module(),
            *(x.to(device, kind) for x in (query, key, value)),
            None,
            blocks=blocks_of(lengths, device),
            sliding_window=window,
        )[0]
        for device, kind in ((torch.device("cpu"), torch.float32), (this_device(), dtype))
    )
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found.float().cpu(), wanted, rtol=tolerance, atol=tolerance)


def test_norms_are_the_modules_own_but_for_one_rounding():
    own = LlamaRMSNorm(256).to("cuda", torch.bfloat16)
    short = copy.deepcopy(own)
    use_short_norms(short)
    x_ND = torch.randn(99, 256, device="cuda", dtype=torch.bfloat16)
    torch.testing.assert_close(short(x_ND), own(x_ND), rtol=2**-7, atol=0)


def test_the_best_weights_wait_on_the_host():
    model, best = torch.nn.Linear(2, 2).cuda(), Best()
    kept = model.weight.detach().clone()
    best.offer(1.0, 1, model)
    assert all(x.device.type == "cpu" for x in best.weights.values())
    torch.nn.init.zeros_(model.weight)
    best.restore(model)
    assert torch.equal(model.weight, kept)


def free_bytes() -> int:
    return torch.cuda.mem_get_info()[0]


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Iterator[tuple[EngineProcess, Path, dict[str, PreTrainedModel]]]:
    """vLLM on CUDA in bfloat16, and two sets of weights for it; others hold a part of the GPU."""
    root = tmp_path_factory.mktemp("cuda")
    others = torch.empty(free_bytes() // 5, dtype=torch.uint8, device="cuda")
    made = {name: models.make("qwen2", root / name, seed=i) for i, name in enumerate("ab")}
    process = EngineProcess(
        "vllm",
        str(root / "a"),
        sampling=Sampling(0.7, 24, (models.EOS,)),
        version=Version(0, 0),
        dtype="bfloat16",
        max_model_len=models.POSITIONS,
        kv_cache_mb=512,
        sleeps=True,
        takes_ipc=True,
    )
    yield process, root, made
    process.close()
    del others


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


def graphs(engine: Any) -> str:
    return str(engine._engine.vllm_config.compilation_config.cudagraph_mode)


def test_decoding_is_captured(engine):
    assert engine[0].call(graphs) == "FULL_DECODE_ONLY"


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
        model = copy.deepcopy(made[name]).to("cuda", torch.bfloat16)
        update, kept = shared(model.state_dict().items())
        process.call(load_ipc, Version(1, step), update)
        del kept
        close_to(process, made[name])


def test_other_weights_by_cuda_ipc_are_refused_and_change_nothing(engine):
    process, root, made = engine
    process.call(actions.load, Version(2, 0), str(root / "a"))
    state = copy.deepcopy(made["b"]).to("cuda", torch.bfloat16).state_dict()
    update, kept = shared((name, x) for name, x in state.items() if "norm" not in name)
    with pytest.raises(ValueError, match="the new version lacks"):
        process.call(load_ipc, Version(2, 1), update)
    del kept
    close_to(process, made["a"])


@pytest.fixture
def one_gpu() -> Iterator[None]:
    """A Ray with a single GPU, whatever this machine has."""
    with several_nodes("--num-cpus=2", "--num-gpus=1"):
        yield


def test_a_run_whose_weights_go_by_cuda_ipc(tmp_path: Path, one_gpu: None):
    place = (f"--run.root={tmp_path}", "--run.name=shared")
    flags = (*TINY, "--ppo.iterations=3", "--model.dtype=bfloat16", "--rollout.sleep")
    succeed("ppo", *place, *flags, "--cluster.weights-by=cuda_ipc")
    done = summary(tmp_path / "shared")
    assert done["generator_restarts"] == 0 and done["rollouts"]["consumed"] == 48
