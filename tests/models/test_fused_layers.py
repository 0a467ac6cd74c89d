"""Fused layers give what the layers' own code gives; other layers are left alone."""

import copy

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlhf_ray.models import fused_layers
from rlhf_ray.models.attention import use_short_attention
from rlhf_ray.models.fused_layers import fuse_layers

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
}
FUSED = {
    "qwen2, 2 queries a key": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2)),
    "llama, 1 query a key": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=4)),
    "mistral, 4 queries a key": lambda: MistralForCausalLM(
        MistralConfig(**SIZES, num_key_value_heads=1)
    ),
}
LEFT_ALONE = {
    "qwen3, norms of q and k": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SIZES, num_key_value_heads=2)
    ),
    "gemma2, four norms": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, num_key_value_heads=2)),
    "llama, gelu": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, num_key_value_heads=4, hidden_act="gelu")
    ),
    "llama, biased mlp": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, num_key_value_heads=4, mlp_bias=True)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2)),
}


def make(build) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms too
    use_short_attention(model)
    return model


def run(model: torch.nn.Module, ids_BL: torch.Tensor) -> tuple[torch.Tensor, dict]:
    model.zero_grad()
    hidden_BLD = model.base_model(input_ids=ids_BL, use_cache=False).last_hidden_state
    weights = torch.linspace(-1, 1, hidden_BLD.numel()).view_as(hidden_BLD)
    (hidden_BLD.float() * weights).sum().backward()
    grads = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    return hidden_BLD.detach().float(), grads


@pytest.mark.parametrize("name", FUSED)
def test_forward_and_backward_equal_the_layers_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make(FUSED[name])
    fused = copy.deepcopy(own)
    assert fuse_layers(fused) == 2
    ids_BL = torch.randint(0, 40, (3, 11), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(fused_layers, "DTYPE", torch.float32)
    calls = []
    inner = fused_layers._fused
    monkeypatch.setattr(fused_layers, "_fused", lambda *a: calls.append(1) or inner(*a))
    want, want_grads = run(own, ids_BL)
    found, found_grads = run(fused, ids_BL)
    assert len(calls) == 2
    torch.testing.assert_close(found, want, rtol=0, atol=2e-5)
    assert found_grads.keys() == want_grads.keys()
    for parameter, grad in want_grads.items():
        torch.testing.assert_close(
            found_grads[parameter], grad, rtol=1e-3, atol=1e-4, msg=parameter
        )


@pytest.mark.parametrize("name", FUSED)
def test_bfloat16_is_as_near_to_float32_as_the_layers_own(name: str) -> None:
    exact = make(FUSED[name])
    own = copy.deepcopy(exact)
    fused = copy.deepcopy(exact)
    fuse_layers(fused)
    ids_BL = torch.randint(0, 40, (3, 11), generator=torch.Generator().manual_seed(1))
    want, want_grads = run(exact, ids_BL)
    errors = []
    for model in (own, fused):
        hidden, grads = run(model.to(torch.bfloat16), ids_BL)
        away = [float((grads[n] - want_grads[n]).norm() / want_grads[n].norm()) for n in grads]
        errors.append((float((hidden - want).norm() / want.norm()), sum(away) / len(away)))
    (own_out, own_grad), (fused_out, fused_grad) = errors
    assert fused_out < 1.5 * own_out and fused_grad < 1.5 * own_grad, errors


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_other_layers_are_left_alone(name: str) -> None:
    assert fuse_layers(make(LEFT_ALONE[name])) == 0


def test_a_copy_runs_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "DTYPE", torch.float32)
    model = make(FUSED["llama, 1 query a key"])
    fuse_layers(model)
    other = copy.deepcopy(model)
    ids_BL = torch.arange(6)[None]
    before, _ = run(other, ids_BL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(run(other, ids_BL)[0], before)


def test_long_rows_go_to_the_layers_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(FUSED["qwen2, 2 queries a key"])
    fuse_layers(model)
    model.to(torch.bfloat16)
    monkeypatch.setattr(fused_layers, "LONGEST", 8)
    monkeypatch.setattr(fused_layers, "_fused", lambda *a: pytest.fail("nine tokens are too many"))
    run(model, torch.zeros(1, 9, dtype=torch.int64))
