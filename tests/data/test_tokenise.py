import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.data.tokenise import bos_ids_of, tokenise_pairs
from tests.data.characters import BOS, EOS, character_tokenizer, ids

PLAIN, WITH_BOS = character_tokenizer(), character_tokenizer(opens_with_bos=True)
TEXT = st.text(alphabet="abc水壶 .", max_size=12)


def one(tokenizer, prompt, response, **options):
    rows = tokenise_pairs(tokenizer, [prompt], [response], **options)
    return rows.token_ids[0].tolist(), int(rows.prompt_lengths[0]), rows.cut


def test_a_row_by_hand(tokenizer, bos_tokenizer):
    assert one(tokenizer, "ab", "c", max_tokens=9) == ([*ids("abc"), EOS], 2, 0)
    assert one(bos_tokenizer, "ab", "c", max_tokens=9) == ([BOS, *ids("abc"), EOS], 3, 0)
    assert one(tokenizer, "ab", "c", max_tokens=9, append_eos=False) == (ids("abc"), 2, 0)


def test_prompt_is_cut_from_the_left_then_response_from_the_right_and_eos_stays(bos_tokenizer):
    assert one(bos_tokenizer, "abcd", "xyz", max_tokens=6) == ([BOS, *ids("dxyz"), EOS], 2, 1)
    assert one(bos_tokenizer, "abcd", "xyz", max_tokens=4) == ([BOS, *ids("xy"), EOS], 1, 1)
    with pytest.raises(ValueError, match="no room"):
        one(bos_tokenizer, "abcd", "xyz", max_tokens=2)


@given(TEXT, TEXT, st.integers(3, 30), st.sampled_from([PLAIN, WITH_BOS]))
def test_what_survives_a_cut(prompt, response, max_tokens, tokenizer):
    row, prompt_length, cut = one(tokenizer, prompt, response, max_tokens=max_tokens)
    bos = bos_ids_of(tokenizer)
    whole = [*bos, *ids(prompt), *ids(response), EOS]
    assert len(row) == min(max_tokens, len(whole))
    assert cut == (len(whole) > max_tokens)
    assert row[-1] == EOS
    assert row[: len(bos)] == bos
    start = prompt_length or len(bos)
    kept_prompt, kept_response = row[len(bos) : start], row[start:-1]
    assert ids(prompt)[len(prompt) - len(kept_prompt) :] == kept_prompt
    assert ids(response)[: len(kept_response)] == kept_response
    assert not kept_prompt or len(kept_response) == len(response)


def test_trained_tokens_are_the_response_with_its_eos_or_all_of_a_plain_text(tokenizer):
    rows = tokenise_pairs(tokenizer, ["ab", ""], ["cd", "abc"], max_tokens=20)
    assert rows.trained_mask(0).tolist() == [False, False, True, True, True]
    assert rows.trained_mask(1).tolist() == [True] * 4
    assert rows.token_ids[0][-1] == tokenizer.pad_token_id  # pad == eos, and it is trained on
    assert rows.lengths.tolist() == [5, 4]
    assert len(rows) == 2
    assert rows.token_ids[0].dtype == np.int32


def test_a_tokenizer_without_an_eos_is_refused():
    bare = character_tokenizer()
    bare.eos_token = None
    with pytest.raises(ValueError, match="no EOS"):
        tokenise_pairs(bare, ["a"], ["b"], max_tokens=9)


def test_a_long_text_is_no_warning_and_no_text_is_no_row(tokenizer, recwarn):
    long = tokenise_pairs(tokenizer, [""], ["a" * 5000], max_tokens=6000)
    assert long.lengths.tolist() == [5001]
    assert tokenise_pairs(tokenizer, [], [], max_tokens=9).token_ids == []
    assert not recwarn.list
