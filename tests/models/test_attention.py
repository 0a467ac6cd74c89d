"""Short attention against softmax(q·kᵀ/√d)·v written out in float64."""

import pytest
import torch
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from rlhf_ray.models import attention
from rlhf_ray.models.attention import NAME, short_attention, use_short_attention


def oracle(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(query.shape, dtype=torch.float64)
    B, H, T, D = query.shape
    group = H // key.shape[1]
    for b in range(B):
        for h in range(H):
            for t in range(T):
                q, k = query[b, h, t].double(), key[b, h // group, : t + 1].double()
                weights = torch.softmax(k @ q / D**0.5, 0)
                out[b, h, t] = weights @ value[b, h // group, : t + 1].double()
    return out.transpose(1, 2)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_the_formula(groups: int) -> None:
    torch.manual_seed(groups)
    query = torch.randn(2, 4, 7, 8).bfloat16()
    key, value = torch.randn(2, 2, groups, 7, 8).bfloat16()
    module = torch.nn.Module()
    out, _ = short_attention(module, query, key, value, None, scaling=8**-0.5, is_causal=True)
    torch.testing.assert_close(out.double(), oracle(query, key, value), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_a_model_gives_the_same_features_and_gradients(shape: str) -> None:
    torch.manual_seed(0)
    if shape == "llama":
        model = LlamaModel(
            LlamaConfig(
                vocab_size=50,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        )
    else:
        model = GPT2Model(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4))
    model = model.eval().bfloat16()
    ids, direction = torch.randint(0, 50, (3, 9)), torch.randn(3, 9, 32)

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        hidden = model(input_ids=ids, use_cache=False).last_hidden_state.float()
        (hidden * direction).sum().backward()
        return [hidden.detach(), *(p.grad.float() for p in model.parameters() if p.ndim > 1)]

    before = run()
    use_short_attention(model)
    assert model.config._attn_implementation == NAME
    for ours, theirs in zip(run(), before, strict=True):
        scale = theirs.abs().max().clamp(min=1e-6)
        assert (ours - theirs).abs().max() / scale < 0.06


def test_a_saved_config_does_not_name_it(tmp_path) -> None:
    model = GPT2Model(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2))
    use_short_attention(model)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
