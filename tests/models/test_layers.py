"""Layers that run again in the backward pass: the same gradients from fewer kept activations."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from rlhf_ray.models.layers import layers_of, recompute_layers
from rlhf_ray.models.norms import use_short_norms
from rlhf_ray.models.packing import PackedRows, hidden_states, packs, use_packing

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
MODELS = {
    "llama": lambda: LlamaModel(LlamaConfig(**SMALL, intermediate_size=64)),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4)),
}
ROWS = PackedRows(torch.arange(1, 49), (3, 5, 40))


def make(name: str, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    use_short_norms(model)
    use_packing(model)
    assert packs(model)
    return model.to(dtype)


def gradients(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], int]:
    """(gradients by name, bytes that autograd kept for them)."""
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden_ND = hidden_states(model, ROWS)
    hidden_ND.float().square().sum().backward()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found, sum(nbytes for place, nbytes in kept.items() if place not in weights)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_bits_from_fewer_activations(name: str, dtype: torch.dtype) -> None:
    plain = make(name, dtype)
    again = copy.deepcopy(plain)
    recompute_layers(again)
    wanted, all_bytes = gradients(plain)
    found, few_bytes = gradients(again)
    assert found.keys() == wanted.keys() and list(again.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert few_bytes < all_bytes / 4, (few_bytes, all_bytes)


def test_a_copy_runs_its_own_weights() -> None:
    model = make("llama", torch.float32)
    recompute_layers(model)
    other = copy.deepcopy(model)
    before = hidden_states(other, ROWS).detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(hidden_states(other, ROWS), before)


def test_without_gradients_nothing_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama", torch.float32)
    recompute_layers(model)
    monkeypatch.setattr("rlhf_ray.models.layers.checkpoint", None)
    with torch.no_grad():
        assert hidden_states(model, ROWS).isfinite().all()


def test_a_trunks_layers_are_the_list_with_the_most_parameters() -> None:
    model = make("llama", torch.float32)
    model.small = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(9))
    assert layers_of(model) == list(model.layers)
    assert layers_of(torch.nn.Linear(2, 2)) == []
