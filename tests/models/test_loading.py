"""Loading: what is there is loaded, what is not says what to do."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
)

from rlhf_ray.models.loading import (
    cast_parameters,
    check_length,
    compute_dtype,
    load_causal_lm,
    load_tokenizer,
)
from rlhf_ray.models.tiny import make_decoder, make_tokenizer

MADE = make_tokenizer(["some text"], vocab=300)


def word_tokenizer(path: Path, **special: str) -> None:
    vocab = {name: i for i, name in enumerate(["a", "b", "[X]", "[Y]"])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(path)


def test_a_decoder_round_trips_in_both_types(tmp_path: Path) -> None:
    model = make_decoder(MADE, hidden=64, layers=1, seed=0)
    model.save_pretrained(tmp_path)
    loaded = load_causal_lm(tmp_path)
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    half = load_causal_lm(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_pad_falls_back_to_eos_without_a_new_token(tmp_path: Path) -> None:
    word_tokenizer(tmp_path, eos_token="[X]")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert len(tokenizer) == 4


def test_berts_separator_ends_a_text(tmp_path: Path) -> None:
    word_tokenizer(tmp_path, sep_token="[X]", cls_token="[Y]")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, len(tokenizer)) == (2, 3, 4)


def test_no_eos_is_an_error(tmp_path: Path) -> None:
    word_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"has no EOS token.*set `eos_token`"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("load", [load_tokenizer, load_causal_lm])
def test_a_missing_directory_is_named(load, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent does not exist: give a directory"):
        load(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"could be loaded from"):
        load(tmp_path)


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=30, intermediate_size=16, **shape)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    GPT2Model(GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "trunk"
    )
    for name, architecture in (("bert", "BertForMaskedLM"), ("trunk", "GPT2Model")):
        with pytest.raises(ValueError, match=rf"holds {architecture}, not a causal language"):
            load_causal_lm(tmp_path / name)


def test_compute_dtype() -> None:
    assert compute_dtype("float32") is torch.float32
    assert compute_dtype("bfloat16") is torch.bfloat16
    has = {"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split())
    assert compute_dtype("auto") is (torch.bfloat16 if has else torch.float32)


def test_casting_leaves_buffers_alone() -> None:
    model = cast_parameters(make_decoder(MADE, hidden=64, layers=1, seed=0), torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_rows_longer_than_the_model_are_refused() -> None:
    model = make_decoder(MADE, hidden=64, layers=1, seed=0)
    check_length(model, 1024, "sft.max-tokens")
    with pytest.raises(ValueError, match=r"--sft.max-tokens is 1025.*1024 positions: set"):
        check_length(model, 1025, "sft.max-tokens")
