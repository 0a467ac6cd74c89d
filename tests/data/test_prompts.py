import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config import Data
from rlhf_ray.data.chat import render
from rlhf_ray.data.prompts import batch_of_step, load_prompts
from rlhf_ray.data.tokenise import tokenise_pairs
from tests.data.characters import BOS, character_tokenizer, ids

LINES = [f"line {i}" for i in range(50)]


def write(tmp_path, name, lines):
    path = tmp_path / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def load(path, tokenizer, *, seed=0, **options):
    return load_prompts(Data(prompts=path, **options), tokenizer, seed)


def test_lines_become_prompts_with_ids_and_tokens_and_a_split(tmp_path, tokenizer):
    found = load(write(tmp_path, "a.txt", LINES), tokenizer, heldout_fraction=0.2)
    assert sorted(p.text for p in [*found.train, *found.heldout]) == sorted(LINES)
    for side in (found.train, found.heldout):
        assert side
        assert [p.prompt_id for p in side] == list(range(len(side)))
        assert all(list(p.token_ids) == ids(p.text) for p in side)
    again = load(write(tmp_path, "b.txt", LINES), tokenizer, heldout_fraction=0.2)
    assert again == found
    assert (found.cut, found.bad_rows, found.overlap) == (0, 0, 0)


def test_equal_prompts_stay_on_one_side(tmp_path, tokenizer):
    found = load(write(tmp_path, "a.txt", LINES * 3), tokenizer, heldout_fraction=0.3)
    assert not {p.text for p in found.train} & {p.text for p in found.heldout}
    assert len(found.train) + len(found.heldout) == 150


def test_a_heldout_file_is_used_and_its_prompts_leave_training(tmp_path, tokenizer):
    train, heldout = write(tmp_path, "a.txt", LINES), write(tmp_path, "h.txt", ["new", "line 7"])
    found = load(train, tokenizer, heldout_prompts=heldout)
    assert [p.text for p in found.heldout] == ["new", "line 7"]
    assert len(found.train) == 49
    assert found.overlap == 1
    with pytest.raises(ValueError, match="every prompt"):
        load(train, tokenizer, heldout_prompts=train)


def test_json_rows_with_a_column_and_with_messages(tmp_path, tokenizer, chat_tokenizer):
    turns = [("human", "hi"), ("gpt", "yes?"), ("human", "go on")]
    messages = [{"from": role, "value": text} for role, text in turns]
    rows = [{"q": "plain"}, {"q": messages}]
    path = write(tmp_path, "a.jsonl", map(json.dumps, rows))
    options = {"prompt_column": "q", "heldout_fraction": 0}
    plain = load(path, tokenizer, **options)
    assert [p.text for p in plain.train] == [
        "plain",
        "\n\nuser: hi\n\nassistant: yes?\n\nuser: go on\n\nassistant:",
    ]
    rendered = load(path, chat_tokenizer, **options)
    assert [p.text for p in rendered.train] == [
        "<user>plain<assistant>",
        "<user>hi<assistant>yes?<user>go on<assistant>",
    ]
    assert load(path, chat_tokenizer, chat_template="never", **options) == plain
    asked = ["plain", tuple(turns)]
    assert [p.asked for p in plain.train] == [p.asked for p in rendered.train] == asked
    with pytest.raises(ValueError, match="no chat template"):
        load(path, tokenizer, chat_template="always", **options)


def test_a_template_that_writes_the_date_writes_the_same_on_any_day():
    template = "Today: {{ strftime_now('%d %b %Y') }}. {{ messages[0].content }}"
    dated = character_tokenizer(template=template)
    assert render("Hello", dated, "auto") == "Today: 01 Jan 2025. Hello"


def test_a_conversation_that_the_template_refuses_is_a_bad_row(tmp_path):
    template = "{% for m in messages %}{{ raise_exception('no tool here') if m['role'] == 'tool' "
    tokenizer = character_tokenizer(template=template + "else m['content'] }}{% endfor %}")
    turns = [[{"role": role, "content": "q"}] for role in ("user", "tool")]
    path = write(tmp_path, "a.jsonl", (json.dumps({"prompt": turn}) for turn in turns))
    with pytest.raises(ValueError, match=r"a\.jsonl:2: the chat template refuses"):
        load(path, tokenizer, heldout_fraction=0)
    found = load(path, tokenizer, heldout_fraction=0, on_bad_row="skip")
    assert [p.text for p in found.train] == ["q"] and found.bad_rows == 1


def test_long_prompts_are_cut_from_the_left_and_counted(tmp_path, bos_tokenizer):
    path = write(tmp_path, "a.txt", ["abcdef", "xy"])
    found = load(path, bos_tokenizer, max_prompt_tokens=4, heldout_fraction=0)
    assert [list(p.token_ids) for p in found.train] == [[BOS, *ids("def")], [BOS, *ids("xy")]]
    assert found.cut == 1
    with pytest.raises(ValueError, match="max_prompt_tokens is 1"):
        load(path, bos_tokenizer, max_prompt_tokens=1)


def test_a_long_conversation_keeps_the_bos_that_its_template_wrote(tmp_path):
    template = "[bos]{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer = character_tokenizer(opens_with_bos=True, template=template)
    path = write(tmp_path, "a.jsonl", ['{"prompt": [{"role": "user", "content": "abcdef"}]}'])
    found = load(path, tokenizer, max_prompt_tokens=4, heldout_fraction=0)
    assert [list(p.token_ids) for p in found.train] == [[BOS, *ids("def")]] and found.cut == 1
    pair = tokenise_pairs(tokenizer, ["[bos]abcdef"], ["x"], max_tokens=5, append_eos=False)
    assert pair.token_ids[0].tolist() == [BOS, *ids("def"), *ids("x")]


def test_prompts_made_of_the_beginnings_of_texts(tmp_path, tokenizer):
    lines = [f"{i}好不错水壶" for i in range(100, 300)]
    path = write(tmp_path, "a.tsv", [f"{a}\tsecond {a}" for a in lines])
    options = {"prompt_prefix_chars": (4, 6), "heldout_fraction": 0}
    found = load(path, tokenizer, **options)
    assert {len(p.text) for p in found.train} == {4, 5, 6}
    assert all(p.text == f"{p.text[:3]}好不错"[: len(p.text)] or "second".startswith(p.text)
               for p in found.train)  # fmt: skip
    assert len({p.text for p in found.train}) == len(found.train)
    assert {p.text for p in found.train if p.text[0] == "s"} == {"second"[:n] for n in (4, 5, 6)}
    assert load(path, tokenizer, **options) == found
    assert load(path, tokenizer, seed=1, **options) != found
    with pytest.raises(ValueError, match="a ≤ b"):
        load(path, tokenizer, prompt_prefix_chars=(3, 2))


def test_beginnings_of_json_texts(tmp_path, tokenizer):
    path = write(tmp_path, "a.jsonl", ['{"text": "abcdef"}', '{"prompt": "uvwxyz"}'])
    found = load(path, tokenizer, prompt_prefix_chars=(2, 2), heldout_fraction=0)
    assert [p.text for p in found.train] == ["ab", "uv"]


def test_bad_rows_end_the_run_or_are_counted(tmp_path, tokenizer):
    rows = [
        '{"prompt": "a"}',
        '{"prompt": 3}',
        '{"text": "b"}',
        '{"prompt": ""}',
        "{",
        '{"prompt": []}',
        '{"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}',
    ]
    path = write(tmp_path, "a.jsonl", rows)
    wanted = r"a\.jsonl:2: 'prompt' is a number: give a text or a list of messages"
    with pytest.raises(ValueError, match=wanted):
        load(path, tokenizer)
    answered = write(tmp_path, "b.jsonl", rows[-1:])
    with pytest.raises(
        ValueError, match=r"b\.jsonl:1: 'prompt' ends with the answer of 'assistant'"
    ):
        load(answered, tokenizer)
    found = load(path, tokenizer, on_bad_row="skip", heldout_fraction=0)
    assert [p.text for p in found.train] == ["a"]
    assert found.bad_rows == 6 and found.first_bad.startswith(f"{path}:2: 'prompt' is a number")


def test_no_prompts_is_an_error(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"empty\.txt holds no prompt"):
        load(write(tmp_path, "empty.txt", []), tokenizer)
    with pytest.raises(ValueError, match=r"--data\.prompts FILE"):
        load(None, tokenizer)
    with pytest.raises(ValueError, match=r"holds no prompt: its one row is bad: .*b\.jsonl:1: no "):
        load(write(tmp_path, "b.jsonl", ["{}"]), tokenizer, on_bad_row="skip")
    wanted = r"c\.txt has only one prompt, .*--data\.heldout-prompts FILE$"
    with pytest.raises(ValueError, match=wanted):
        load(write(tmp_path, "c.txt", ["one"]), tokenizer)


@given(st.integers(1, 60), st.data(), st.integers(0, 5))
def test_an_epoch_takes_every_prompt_at_most_once(n, data, seed):
    batch = data.draw(st.integers(1, n))
    steps = n // batch
    epochs = [
        [i for s in range(steps) for i in batch_of_step(n, batch, seed, e * steps + s)]
        for e in range(2)
    ]
    for epoch in epochs:
        assert len(epoch) == steps * batch == len(set(epoch))
        assert set(epoch) <= set(range(n))
    assert epochs[0] == [i for s in range(steps) for i in batch_of_step(n, batch, seed, s)]


def test_batches_differ_by_epoch_and_seed_and_not_by_what_was_asked_before():
    first = batch_of_step(1000, 10, 0, 3)
    assert batch_of_step(1000, 10, 0, 103) != first
    assert batch_of_step(1000, 10, 1, 3) != first
    assert batch_of_step(1000, 10, 0, 3) == first


def test_more_prompts_a_step_than_there_are():
    with pytest.raises(
        ValueError, match=r"takes 11 .* there are 10 .*--ppo\.prompts to at most 10"
    ):
        batch_of_step(10, 11, 0, 0)
