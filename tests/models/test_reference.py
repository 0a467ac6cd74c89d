"""The reference policy's log-probs, against transformers' full logits, row by row."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from rlhf_ray.data.schemas import EOS, ROLLOUT, rollout_table
from rlhf_ray.models import reference
from rlhf_ray.models.actor_critic import Actor
from rlhf_ray.models.reference import ReferenceModel
from rlhf_ray.models.tiny import make_decoder, make_tokenizer

VOCAB = 300


def tiny() -> PreTrainedModel:
    return make_decoder(make_tokenizer(["a few words of text"], vocab=VOCAB), 64, 2, seed=1)


def llama() -> PreTrainedModel:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB, num_attention_heads=2, initializer_range=0.3, **shape)
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    )


def rollouts(n: int = 7, *, seed: int = 0) -> pa.Table:
    """Random tokens: prompts of 1 to 9, responses of 1 to 12, in no order of length."""
    rng = np.random.default_rng(seed)

    def tokens(longest: int) -> list[int]:
        return rng.integers(0, 250, rng.integers(1, longest + 1)).tolist()

    responses = [tokens(12) for _ in range(n)]
    return rollout_table(
        [
            {
                "rollout_id": 100 - i,
                "prompt_id": i,
                "sample_index": 0,
                "prompt_token_ids": tokens(9),
                "response_token_ids": response,
                "behaviour_logprobs": [0.0] * len(response),
                "finish_reason": EOS,
                "version_spans": [0, 0, 0],
                "generator": "test",
            }
            for i, response in enumerate(responses)
        ]
    )


def expected(path: Path, table: pa.Table, temperature: float) -> list[np.ndarray]:
    """log softmax of the whole logits, one row at a time, in float64."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    result = []
    for row in table.to_pylist():
        prompt, response = row["prompt_token_ids"], row["response_token_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0].double() / temperature
        logp = logits.log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
        result.append(np.array([logp[t, r] for t, r in zip(places, response, strict=True)]))
    return result


def rows(table: pa.Table) -> list[list[float]]:
    return table.column("ref_logprobs").to_pylist()


@pytest.mark.parametrize("make", [tiny, llama, gpt2])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_each_log_prob_is_that_of_the_full_logits(tmp_path: Path, make, temperature: float) -> None:
    torch.manual_seed(5)
    make().save_pretrained(tmp_path)
    table = rollouts()
    model = ReferenceModel(str(tmp_path), dtype="float32", temperature=temperature)
    result = model.logprobs(table)
    assert result.column("rollout_id").to_pylist() == table.column("rollout_id").to_pylist()
    for got, want in zip(rows(result), expected(tmp_path, table, temperature), strict=True):
        assert got == pytest.approx(want, abs=2e-4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("reference")
    tiny().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("tokens", [1, 30, 100_000])
def test_the_cut_into_passes_changes_nothing(
    saved: str, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    model, table = ReferenceModel(saved, dtype="float32"), rollouts(12)
    whole = rows(model.logprobs(table))
    monkeypatch.setitem(reference.MICRO_BATCH_TOKENS, "cpu", tokens)
    for got, want in zip(rows(model.logprobs(table)), whole, strict=True):
        assert got == pytest.approx(want, abs=1e-5)


def test_bfloat16_is_near_float32(saved: str) -> None:
    table = rollouts()
    exact = np.concatenate(rows(ReferenceModel(saved, dtype="float32").logprobs(table)))
    low = np.concatenate(rows(ReferenceModel(saved, dtype="bfloat16").logprobs(table)))
    assert 0 < np.abs(low - exact).max() < 0.1


def test_a_model_is_cast_before_it_goes_to_its_device(
    saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []

    def to(actor: Actor, device: str) -> Actor:
        moved.append({parameter.dtype for parameter in actor.parameters()})
        return torch.nn.Module.to(actor, device)

    monkeypatch.setattr(Actor, "to", to)
    ReferenceModel(saved, dtype="bfloat16")
    assert moved == [{torch.bfloat16}]


def test_slices_and_empty_tables(saved: str) -> None:
    model, table = ReferenceModel(saved, dtype="float32"), rollouts(6)
    whole = rows(model.logprobs(table))
    for got, want in zip(rows(model.logprobs(table.slice(2, 3))), whole[2:5], strict=True):
        assert got == pytest.approx(want, abs=1e-5)
    assert model.logprobs(ROLLOUT.empty_table()).num_rows == 0
