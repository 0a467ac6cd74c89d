"""How vLLM is set up on a CPU and on a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.generators.environment import vllm_environment
from rlhf_ray.generators.vllm_options import engine_options


def options(model: str = "some/model", **given: Any) -> dict[str, Any]:
    defaults = {
        "cuda": False, "dtype": "float32", "max_model_len": 64, "max_num_seqs": 8, "kv_cache_mb": 2,
    }  # fmt: skip
    return engine_options(model, **defaults | given)


def test_on_a_cpu_nothing_is_captured_and_memory_is_as_asked() -> None:
    made = options()
    assert made["enforce_eager"] and "compilation_config" not in made
    assert made["kv_cache_memory_bytes"] == 2 << 20
    assert "gpu_memory_utilization" not in made and "distributed_executor_backend" not in made


def test_on_a_gpu_decoding_is_captured_unless_it_is_turned_off() -> None:
    made = options(cuda=True)
    assert not made["enforce_eager"]
    assert made["compilation_config"] == {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    plain = options(cuda=True, eager=True)
    assert plain["enforce_eager"] and "compilation_config" not in plain
    assert made["enable_flashinfer_autotune"] is False
    assert made["enable_chunked_prefill"] and not options()["enable_chunked_prefill"]


def test_on_a_gpu_logits_are_float32() -> None:
    assert options(cuda=True)["hf_overrides"] == {"head_dtype": "float32"}
    assert "hf_overrides" not in options()


def test_on_a_gpu_that_others_use_it_asks_for_next_to_nothing_at_the_start() -> None:
    assert 0 < options(cuda=True)["gpu_memory_utilization"] < 0.01


def test_several_gpus_are_processes_and_not_actors_of_ray() -> None:
    assert options(tensor_parallel=2)["distributed_executor_backend"] == "mp"


def test_a_prompt_is_never_split() -> None:
    assert options(max_model_len=64, max_num_seqs=256)["max_num_batched_tokens"] == 8192
    assert options(max_model_len=64)["max_num_batched_tokens"] == 8 * 64, "nobody can have more"
    assert options(max_model_len=20_000)["max_num_batched_tokens"] == 20_000


READS = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
args = EngineArgs(**json.load(sys.stdin))
graphs = args.compilation_config
print(int(graphs.mode), graphs.cudagraph_mode, args.weight_transfer_config.backend)
"""


@pytest.mark.slow
def test_the_installed_vllm_takes_what_a_gpu_is_given(tmp_path: Path) -> None:
    given = options(str(tmp_path), cuda=True, sleeps=True, takes_ipc=True, metrics_as="name")
    done = subprocess.run(
        [sys.executable, "-c", READS],
        input=json.dumps(given),
        env=os.environ | vllm_environment(1),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "FULL_DECODE_ONLY", "ipc"]
