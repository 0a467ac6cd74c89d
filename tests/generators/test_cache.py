"""Memory for keys and values that nobody asked for by number."""

import pytest
import torch
from transformers import BloomConfig, GPT2Config, LlamaConfig, PretrainedConfig, Qwen2Config

from rlhf_ray.generators import cache
from rlhf_ray.generators.cache import CPU_MB, cache_mb, default_cache_mb, token_bytes
from rlhf_ray.models.device import GPUS, device_here

QWEN_7B = Qwen2Config(
    hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4
)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (QWEN_7B, 2 * 28 * 4 * 128 * 2),
        (LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
                     num_key_value_heads=None), 2 * 32 * 32 * 128 * 2),
        (LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=80), 2 * 2 * 2 * 80 * 2),
        (GPT2Config(n_embd=768, n_layer=12, n_head=12), 2 * 12 * 12 * 64 * 2),
        (BloomConfig(hidden_size=64, n_layer=3, n_head=2), 2 * 3 * 2 * 32 * 2),
    ],
    ids=["grouped", "multi-head", "head_dim", "gpt2", "bloom"],
)  # fmt: skip
def test_bytes_of_a_token_in_bfloat16(config: PretrainedConfig, expected: int) -> None:
    assert token_bytes(config, itemsize=2) == expected
    assert token_bytes(config, itemsize=4) == 2 * expected


def test_heads_are_divided_among_gpus_and_none_has_less_than_one() -> None:
    whole = token_bytes(QWEN_7B, itemsize=2)
    assert [whole // token_bytes(QWEN_7B, itemsize=2, gpus=n) for n in (1, 2, 4, 8)] == [1, 2, 4, 4]


def test_all_rows_fit_where_the_gpu_has_room() -> None:
    """256 rows of 10 blocks of 32 tokens, one block more, 56 KB a token."""
    made = cache_mb(57_344, rows=256, tokens=320, gpu_bytes=80 << 30)
    assert made == -(-(256 * 10 + 1) * 32 * 57_344 // (1 << 20)) == 4482
    assert cache_mb(57_344, rows=256, tokens=319, gpu_bytes=80 << 30) == made, "whole blocks"


def test_half_of_the_gpus_part_is_the_most_and_one_row_the_least() -> None:
    assert cache_mb(57_344, rows=256, tokens=320, gpu_bytes=6 << 30) == 3 << 10
    assert cache_mb(57_344, rows=256, tokens=32_768, gpu_bytes=1 << 30) == 1794


def test_on_a_cpu_it_is_as_much_for_every_model() -> None:
    if device_here() == "cuda":
        pytest.skip("a GPU is here")
    assert default_cache_mb("no/such/model", max_model_len=64, sampling=None) == CPU_MB


def test_an_engine_goes_by_its_part_of_a_gpu(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    QWEN_7B.save_pretrained(tmp_path)
    memory = type("Properties", (), {"total_memory": 24 << 30})
    monkeypatch.setattr(cache, "device_here", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)

    def made(**options: object) -> int:
        given = {"dtype": "bfloat16", "max_model_len": 320, "max_num_seqs": 256}
        return default_cache_mb(str(tmp_path), **given | options)  # type: ignore[arg-type]

    assert made() == 4482
    monkeypatch.setenv(GPUS, "0.25")
    assert made() == 3 << 10
    monkeypatch.setenv(GPUS, "4")
    assert made(tensor_parallel=4) == -(-4482 // 4)
