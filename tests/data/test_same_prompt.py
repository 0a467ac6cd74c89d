"""One conversation is one prompt, whichever loader reads it and whoever named its roles."""

import json

import pytest

from rlhf_ray.config import Data
from rlhf_ray.data.chat import asked_turns
from rlhf_ray.data.preferences import load_lists, write_jsonl
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.data.samples import load_samples
from rlhf_ray.data.texts import load_texts, with_template

TURNS = (("user", "q"), ("assistant", "a"), ("user", "b"))
PLAIN = "\n\nuser: q\n\nassistant: a\n\nuser: b\n\nassistant:"
RENDERED = "<user>q<assistant>a<user>b<assistant>"
NAMES = [("user", "assistant"), ("Human", "Assistant"), ("human", "gpt"), ("用户", "助手")]


def conversation(user, answerer):
    return [message({"user": user, "assistant": answerer}[role], text) for role, text in TURNS]


def message(role, text):
    return {"from": role, "value": text}


def written(user, answerer):
    """The conversation as a text, up to the answer."""
    names = {"user": user, "assistant": answerer}
    turns = "".join(f"\n\n{names[role]}: {text}" for role, text in TURNS)
    return f"{turns}\n\n{answerer}:"


def file_of(tmp_path, row):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    return path


def prompts_of(path, tokenizer):
    data = Data(prompts=str(path), heldout_fraction=0)
    return [one.text for one in load_prompts(data, tokenizer, 0).train]


def assert_list(path, tokenizer, prompt, texts):
    (found,) = load_lists(path, tokenizer=tokenizer)
    assert (found.prompt, found.responses, found.group) == (prompt, tuple(texts), "q")


def assert_text(path, tokenizer, prompt, response):
    (text,) = with_template(load_texts(path), tokenizer, "auto")
    assert (text.prompt, text.response) == (prompt, response)


def assert_everywhere(tmp_path, said, rankings, answered, one, prompt, texts):
    """`said` is `prompt` to every loader with tokenizer `one`, and its answers are `texts`."""
    for row in rankings:
        assert_list(file_of(tmp_path, row), one, prompt, texts)
    for row in rankings + answered:
        assert_text(file_of(tmp_path, row), one, prompt, texts[0])
    path = file_of(tmp_path, {"prompt": said, "responses": ["x", "y"]})
    assert load_samples(path, one)[0].prompt == prompt
    assert prompts_of(path, one) == [prompt]


@pytest.mark.parametrize(("user", "answerer"), NAMES)
def test_messages_are_one_prompt(tmp_path, tokenizer, chat_tokenizer, user, answerer):
    said = conversation(user, answerer)
    good, bad = message(answerer, "x"), message(answerer, "y")
    rankings = [
        {"context": said, "chosen": good, "rejected": bad},
        {"prompt": said, "chosen": [good], "rejected": [bad]},
        {"chosen": [*said, good], "rejected": [*said, bad]},
        {"prompt": said, "responses": [" x", " y"], "ranks": [1, 2]},
    ]
    answered = [{"conversations": [*said, good]}, {"prompt": said, "completion": [good]}]
    for one, prompt, texts in ((tokenizer, PLAIN, (" x", " y")), (chat_tokenizer, RENDERED, "xy")):
        assert_everywhere(tmp_path, said, rankings, answered, one, prompt, texts)


@pytest.mark.parametrize(("user", "answerer"), NAMES)
def test_a_transcript_is_one_prompt(tmp_path, tokenizer, chat_tokenizer, user, answerer):
    said = written(user, answerer)
    good, bad = message(answerer, "x"), message(answerer, "y")
    rankings = [
        {"prompt": said, "selected": " x", "rejected": " y"},
        {"prompt": said, "chosen": [good], "rejected": [bad]},
        {"chosen": f"{said} x", "rejected": f"{said} y"},
    ]
    answered = [{"prompt": said, "response": " x"}, {"prompt": said, "completion": [good]}]
    for one, prompt, texts in ((tokenizer, said, (" x", " y")), (chat_tokenizer, RENDERED, "xy")):
        assert_everywhere(tmp_path, said, rankings, answered, one, prompt, texts)


def test_what_is_asked_after_a_transcript_stays_in_order(tmp_path, chat_tokenizer):
    said = written("Human", "Assistant")
    more = [message("gpt", "x"), message("human", "c"), message("gpt", "d")]
    path = file_of(tmp_path, {"prompt": said, "completion": more})
    (text,) = load_texts(path)
    assert (text.prompt, text.response) == (f"{said} x\n\nuser: c\n\nassistant:", " d")
    (text,) = with_template([text], chat_tokenizer, "auto")
    assert (text.prompt, text.response) == (f"{RENDERED}x<user>c<assistant>", "d")


@pytest.mark.parametrize(("user", "answerer"), NAMES)
def test_lists_that_were_written_keep_their_turns(tmp_path, chat_tokenizer, user, answerer):
    said = conversation(user, answerer)
    row = {"context": said, "chosen": message(answerer, "x"), "rejected": message(answerer, "y")}
    write_jsonl(tmp_path / "b.jsonl", load_lists(file_of(tmp_path, row)))
    (found,) = load_lists(tmp_path / "b.jsonl", tokenizer=chat_tokenizer)
    assert (found.prompt, found.responses, found.group) == (RENDERED, ("x", "y"), "q")


@pytest.mark.parametrize(
    "text",
    ["", "q", "q\n\nAssistant:", "\n\nHuman: q", "\n\nHuman: q\n\nAssistant: a", "Assistant:"],
)
def test_a_text_that_asks_no_answer_in_turns_has_none(text):
    assert asked_turns(text) == ()


def test_a_user_who_quotes_a_transcript_is_not_taken_apart(tmp_path, chat_tokenizer):
    row = {"prompt": [message("user", written("Human", "Assistant"))]}
    quoted = f"<user>{written('Human', 'Assistant')}<assistant>"
    assert prompts_of(file_of(tmp_path, row), chat_tokenizer) == [quoted]
