"""The tokenizer and decoder that are made on the spot."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.tiny import SPECIAL_TOKENS, make_decoder, make_tokenizer

TEXTS = ["房间很干净，服务也好！", "The room was clean and the staff was kind."] * 3
TOKENIZER = make_tokenizer(TEXTS, vocab=400)


@given(st.text(max_size=60))
def test_any_text_round_trips(text: str) -> None:
    if any(name in text for name in SPECIAL_TOKENS):
        return
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_a_frequent_character_is_one_token_wherever_the_text_is_cut() -> None:
    whole = TOKENIZER("房间很干净")["input_ids"]
    assert len(whole) == 5
    assert TOKENIZER("房间")["input_ids"] + TOKENIZER("很干净")["input_ids"] == whole


def test_english_words_are_merged() -> None:
    assert len(TOKENIZER(" the room was clean")["input_ids"]) <= 6


def test_no_special_token_is_added_and_all_differ() -> None:
    ids = {TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.bos_token_id}
    assert len(ids) == 3
    assert not ids & set(TOKENIZER(TEXTS[0])["input_ids"])


def test_auto_classes_load_what_was_saved(tmp_path: Path) -> None:
    model = make_decoder(TOKENIZER, hidden=64, layers=1, seed=5)
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert len(loaded) == len(TOKENIZER)
        assert loaded(TEXTS)["input_ids"] == TOKENIZER(TEXTS)["input_ids"]
        assert loaded.eos_token_id == TOKENIZER.eos_token_id == model.config.eos_token_id
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, x in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], x)


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make_decoder(TOKENIZER, hidden=64, layers=1, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = make_decoder(TOKENIZER, hidden=64, layers=1, seed=3)
    other = make_decoder(TOKENIZER, hidden=64, layers=1, seed=4)
    weights = [m.model.layers[0].mlp.up_proj.weight for m in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert first.lm_head.weight is first.model.embed_tokens.weight


def test_what_cannot_be_made_says_what_can() -> None:
    with pytest.raises(ValueError, match=r"model\.vocab is 100; .* set it to 1024"):
        make_tokenizer(TEXTS, vocab=100)
    with pytest.raises(ValueError, match=r"model\.hidden is 100; .*multiple of 64.*set 128"):
        make_decoder(TOKENIZER, hidden=100, layers=1, seed=0)
