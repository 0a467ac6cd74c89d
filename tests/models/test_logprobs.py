"""Chunked log-probabilities equal the model's own."""

import math

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlhf_ray.models import logprobs as room
from rlhf_ray.models.actor_critic import Actor, Critic, check_head, value_head_for
from rlhf_ray.models.logprobs import HeadShape, response_logprobs
from rlhf_ray.models.packing import PackedRows, use_packing

LLAMA = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
GPT = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA, tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=False)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT)),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2)
    ),
    "gptj, head with a bias": lambda: GPTJForCausalLM(GPTJConfig(**GPT, rotary_dim=4)),
    "gemma2, softcap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**LLAMA, head_dim=8, final_logit_softcapping=0.5)
    ),
    "cohere, scale": lambda: CohereForCausalLM(CohereConfig(**LLAMA, logit_scale=0.3)),
    "granite, divisor": lambda: GraniteForCausalLM(GraniteConfig(**LLAMA, logits_scaling=4.0)),
}


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms too
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("rows_a_chunk", [3, 7])
def test_equal_to_the_models_own_logits(
    name: str, temperature: float, rows_a_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(room.CHUNK_BYTES, "cpu", 4 * 50 * rows_a_chunk)
    model = make(name)
    actor = Actor(model)
    check_head(actor)
    ids_BL = torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    index_N = torch.tensor([1, 2, 3, 9, 10, 15, 17])  # of 3 · 6 inputs
    rows, columns = index_N // 6, index_N % 6
    targets_N = ids_BL[rows, columns + 1]
    weights_N = torch.linspace(-1, 1, 7)

    logits_NV = model(ids_BL[:, :-1], use_cache=False).logits[rows, columns].float() / temperature
    want_NV = torch.log_softmax(logits_NV, 1)
    want_N = want_NV.gather(1, targets_N[:, None]).squeeze(1)
    (want_N * weights_N).sum().backward()
    want_grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    rows = PackedRows(ids_BL[:, :-1].flatten(), (6, 6, 6))
    out = actor(rows, index_N, targets_N, temperature=temperature, entropy=True)
    (out.logprobs_N * weights_N).sum().backward()
    torch.testing.assert_close(out.logprobs_N, want_N, rtol=0, atol=1e-5)
    entropy_N = -(want_NV.exp() * want_NV).sum(1)
    torch.testing.assert_close(out.entropies_N, entropy_N.detach(), rtol=0, atol=1e-5)
    for parameter_name, grad in want_grads.items():
        found = dict(model.named_parameters())[parameter_name].grad
        torch.testing.assert_close(found, grad, rtol=1e-4, atol=1e-5, msg=parameter_name)


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "bloom"])
def test_what_a_row_meets_never_matters(name: str) -> None:
    actor = Actor(make(name))
    use_packing(actor.model)
    critic = Critic(actor.model.base_model, value_head_for(actor.model))
    torch.nn.init.normal_(critic.value_head.weight)
    ids_N = torch.randint(1, 50, (16,), generator=torch.Generator().manual_seed(2))
    index_N, targets_N = torch.tensor([5, 6, 7]), torch.tensor([7, 8, 9])
    alone = PackedRows(ids_N[3:8], (5,))
    together = PackedRows(ids_N, (3, 5, 8))
    with torch.no_grad():
        want_N = actor(alone, index_N - 3, targets_N, temperature=1.0).logprobs_N
        found_N = actor(together, index_N, targets_N, temperature=1.0).logprobs_N
        torch.testing.assert_close(found_N, want_N, rtol=0, atol=1e-5)
        values_N = critic(alone, index_N - 3)
        torch.testing.assert_close(critic(together, index_N), values_N, rtol=0, atol=1e-5)


def test_a_head_that_is_not_known_is_refused() -> None:
    model = make("llama")
    model.lm_head.register_forward_hook(lambda module, args, out: out.square())
    with pytest.raises(ValueError, match="LlamaForCausalLM: log-probabilities from the trunk"):
        check_head(Actor(model))


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        response_logprobs(
            torch.zeros(1, 4),
            torch.nn.Linear(4, 9),
            torch.zeros(1, dtype=torch.int64),
            shape=HeadShape(),
            temperature=0,
        )


@pytest.mark.parametrize("name", ["qwen2", "llama", "gptj, head with a bias", "gemma2, softcap"])
def test_no_tokens_give_no_log_probabilities_and_zero_gradients(name: str) -> None:
    """A group's ranks reduce the gradients that there are: none may be missing on one of them."""
    actor = Actor(make(name))
    nothing = torch.empty(0, dtype=torch.int64)
    out = actor(
        PackedRows(torch.zeros(1, dtype=torch.int64), (1,)), nothing, nothing, temperature=1.0
    )
    out.logprobs_N.sum().backward()
    assert out.logprobs_N.shape == (0,)
    assert all(p.grad is not None and not p.grad.any() for p in actor.parameters())


def test_in_float64_everything_is_float64() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 30, dtype=torch.float64)
    hidden_ND, targets_N = torch.randn(5, 8, dtype=torch.float64), torch.arange(5)
    found_N, entropies_N = response_logprobs(
        hidden_ND, head, targets_N, shape=HeadShape(), temperature=0.7, entropy=True
    )
    want_NV = torch.log_softmax(head(hidden_ND) / 0.7, 1)
    want_N = want_NV.gather(1, targets_N[:, None]).squeeze(1)
    torch.testing.assert_close(found_N, want_N, rtol=0, atol=1e-14)
    torch.testing.assert_close(entropies_N, -(want_NV.exp() * want_NV).sum(1), rtol=0, atol=1e-14)


def test_a_token_that_cannot_be_adds_nothing_to_the_entropy() -> None:
    """A model may mask a part of its vocabulary by a bias of −inf."""
    head = torch.nn.Linear(4, 5)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[3] = -math.inf
    targets_N = torch.tensor([0, 3])
    logprobs_N, entropies_N = response_logprobs(
        torch.ones(2, 4), head, targets_N, shape=HeadShape(), entropy=True
    )
    assert logprobs_N.tolist() == pytest.approx([-math.log(4), -math.inf])
    assert entropies_N.tolist() == pytest.approx([math.log(4)] * 2)


def test_in_bfloat16_other_rows_of_the_product_change_nothing():
    """5 rows are multiplied as 128: results and gradients are those of 128 rows' first 5."""
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 30, bias=True, dtype=torch.bfloat16)
    hidden_ND = torch.randn(128, 8, dtype=torch.bfloat16)
    targets_N = torch.randint(30, (128,))

    def results(rows: int) -> list[torch.Tensor]:
        given_ND = hidden_ND[:rows].clone().requires_grad_()
        logprobs_N, entropies_N = response_logprobs(
            given_ND, head, targets_N[:rows], shape=HeadShape(), entropy=True
        )
        assert len(logprobs_N) == len(entropies_N) == rows
        wanted = (logprobs_N[:5].sum(), [given_ND, head.weight, head.bias])
        given, weight, bias = torch.autograd.grad(*wanted)
        return [logprobs_N[:5], entropies_N[:5], given[:5], weight, bias]

    for few, many in zip(results(5), results(128), strict=True):
        torch.testing.assert_close(few, many)
        assert few.any()
