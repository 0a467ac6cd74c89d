"""RMSNorm by hand against transformers' own."""

import copy

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig, Qwen2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from rlhf_ray.models.norms import _fused, _RMSNorm, use_short_norms

SMALL = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def test_gradients_by_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(5, dtype=torch.float64, generator=generator).requires_grad_()
    # In float64 as far as it goes: s and the gradient of u pass through float32.
    assert torch.autograd.gradcheck(
        lambda a, w: _RMSNorm.apply(a, w, 1e-5), (x, weight), eps=1e-2, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize(
    ("dtype", "loss_off", "least_cosine"),
    [(torch.bfloat16, 1e-2, 0.999), (torch.float32, 1e-6, 1 - 1e-9)],
    ids=["bfloat16", "float32"],
)
@pytest.mark.parametrize(
    ("make", "config"),
    [(LlamaForCausalLM, LlamaConfig(**SMALL)), (Qwen2ForCausalLM, Qwen2Config(**SMALL))],
    ids=["llama", "qwen2"],
)
def test_a_model_says_and_learns_the_same(make, config, dtype, loss_off, least_cosine):
    torch.manual_seed(0)
    own = make(config).to(dtype)
    for name, p in own.named_parameters():
        if "norm" in name:
            p.data += 0.3 * torch.randn_like(p)
    short = copy.deepcopy(own)
    use_short_norms(short)
    assert sum(type(m).__name__.startswith("Short") for m in short.modules()) == 5
    ids = torch.randint(0, 97, (4, 11))
    losses = [model(ids, labels=ids).loss for model in (own, short)]
    torch.testing.assert_close(losses[1], losses[0], rtol=loss_off, atol=0)
    for loss in losses:
        loss.backward()
    for (name, a), b in zip(own.named_parameters(), short.parameters(), strict=True):
        ours, theirs = a.grad.double().flatten(), b.grad.double().flatten()
        assert torch.cosine_similarity(ours, theirs, dim=0) > least_cosine, name
    assert list(own.state_dict()) == list(short.state_dict())


def test_the_gpus_kernel_is_the_modules_but_for_one_rounding():
    torch.manual_seed(0)
    norm = LlamaRMSNorm(64).to(torch.bfloat16)
    norm.weight.data += 0.3 * torch.randn(64)
    x_ND = torch.randn(200, 64).to(torch.bfloat16)
    given_ND, same_ND = x_ND.clone().requires_grad_(), x_ND.clone().requires_grad_()
    own_ND = norm(given_ND)
    fused_ND = _fused(same_ND, norm.weight, norm.variance_epsilon)
    assert fused_ND.dtype == torch.bfloat16
    torch.testing.assert_close(fused_ND, own_ND, rtol=2**-7, atol=0)
    own, fused = (
        torch.autograd.grad(out.float().sin().sum(), [x, norm.weight])
        for out, x in ((own_ND, given_ND), (fused_ND, same_ND))
    )
    for theirs, ours in zip(own, fused, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_a_copy_runs_its_own_weight():
    norm = LlamaRMSNorm(8).to(torch.bfloat16)
    use_short_norms(norm)
    other = copy.deepcopy(norm)
    other.weight.data *= 2
    x = torch.randn(3, 8).to(torch.bfloat16)
    torch.testing.assert_close(other(x), 2 * norm(x))


def test_another_formula_keeps_its_own_code():
    norm = Gemma2RMSNorm(Gemma2Config(**SMALL).hidden_size)
    use_short_norms(norm)
    assert type(norm) is Gemma2RMSNorm
