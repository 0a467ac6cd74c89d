import json
import re
from pathlib import Path

import pytest

from rlhf_ray.config import Data
from rlhf_ray.data.faults import BadRows
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.data.texts import Text, load_texts, split_texts, with_template
from tests.data.characters import character_tokenizer


def write(tmp_path, name, lines):
    path = tmp_path / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_lines_cells_and_columns(tmp_path):
    txt = load_texts(write(tmp_path, "a.txt", ["one", r"a\tb", 'say "hi"']))
    assert list(txt) == [Text("", "one"), Text("", r"a\tb"), Text("", 'say "hi"')]
    tsv = load_texts(write(tmp_path, "a.tsv", ['"x"\ty', r"a\tb" + "\tc"]))
    assert [t.response for t in tsv] == ['"x"', "y", "a\tb", "c"]
    rows = [{"text": "one"}, {"prompt": "p", "response": "r"}, {"prompt": "", "response": "r"}]
    jsonl = load_texts(write(tmp_path, "a.jsonl", map(json.dumps, rows)))
    assert list(jsonl) == [Text("", "one"), Text("p", "r"), Text("", "r")]
    named = load_texts(
        write(tmp_path, "b.jsonl", ['{"q": "p", "a": "r"}', '{"t": "x"}']),
        text_column="t",
        prompt_column="q",
        response_column="a",
    )
    assert list(named) == [Text("p", "r"), Text("", "x")]


def test_every_example_of_the_page_loads(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    section = page.split("## Texts")[1].split("## Prompts")[0]
    rows = re.findall(r"^\{.*\}$", section, re.MULTILINE)
    found = load_texts(write(tmp_path, "a.jsonl", rows))
    assert len(found) == len(rows) == 4
    assert [len(text.turns) for text in found] == [0, 0, 1, 3]


def test_a_cell_means_the_same_alone_in_its_line(tmp_path):
    found = load_texts(write(tmp_path, "a.tsv", [r"a\tb"]))
    assert found[0] == Text("", "a\tb")


def test_bad_rows(tmp_path):
    rows = ['{"text": "a"}', '{"prompt": "p"}', '{"response": "r"}', '{"text": null}', "{"]
    path = write(tmp_path, "a.jsonl", rows)
    wanted = (
        r"a\.jsonl:2: neither 'text', nor 'prompt' and 'response' or 'completion', nor "
        r"'messages' or 'conversations', nor a ranking among the columns \['prompt'\]"
    )
    with pytest.raises(ValueError, match=wanted):
        load_texts(path)
    found = load_texts(path, on_bad_row="skip")
    assert (len(found), found.bad_rows) == (1, 4)
    assert found.first_bad.startswith(f"{path}:2: neither")
    with pytest.raises(ValueError, match=r"a\.tsv:1: cell 2 is empty"):
        load_texts(write(tmp_path, "a.tsv", ["a\t\tb"]))
    with pytest.raises(ValueError, match=r"b\.txt holds no text: it is empty"):
        load_texts(write(tmp_path, "b.txt", []))
    path = tmp_path / "c.txt"
    path.write_bytes(b"ok\nw\0o\n")
    with pytest.raises(ValueError, match=r"c\.txt:2: the text holds a NUL character \(at 1\)"):
        load_texts(path)
    path.write_bytes("好的\n不错\n".encode("gb18030"))
    wanted = (
        r"c\.txt holds no text: all 2 rows are bad, the first: .*c\.txt:1: not UTF-8.*iconv -f GB"
    )
    with pytest.raises(ValueError, match=wanted):
        load_texts(path, on_bad_row="skip")


def test_one_text_cannot_be_split(tmp_path):
    path = write(tmp_path, "a.txt", ["one", "one"])
    wanted = rf"{path} has only one text, .* or set --data\.heldout-fraction 0$"
    with pytest.raises(ValueError, match=wanted):
        split_texts(load_texts(path), 0.1, seed=0)


def test_split_keeps_equal_texts_together():
    texts = [Text("p", str(i % 40)) for i in range(120)]
    train, heldout = split_texts(texts, 0.25, seed=0)
    assert train and heldout and not set(train) & set(heldout)
    assert sorted(map(str, train + heldout)) == sorted(map(str, texts))


def test_of_a_ranking_the_best_response_is_learnt(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"prompt": "p", "responses": ["worse", "best"], "ranks": [2, 1]},
        {"prompt": "q", "selected": "yes", "rejected": "no"},
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert list(load_texts(path)) == [
        Text("p", "best"),
        Text("q", "yes"),
        Text("\n\nHuman: hi\n\nAssistant:", " yes", (("user", "hi"),)),
    ]
    path.write_text('{"question": "Q1", "chosen": "yes", "rejected": "no"}')
    assert list(load_texts(path, prompt_column="question")) == [Text("Q1", "yes")]
    path.write_text(json.dumps({"responses": ["a", "b"], "ranks": [1]}))
    with pytest.raises(ValueError, match=r"a\.jsonl:1: 2 responses and 1 ranks"):
        load_texts(path)


def test_prompts_are_rendered_as_ppo_will_render_them(tokenizer, chat_tokenizer):
    texts = [Text("p", "r"), Text("", "plain")]
    assert with_template(texts, chat_tokenizer, "auto") == [
        Text("<user>p<assistant>", "r"),
        Text("", "plain"),
    ]
    assert with_template(texts, tokenizer, "auto") == texts


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SAID = [user("q"), assistant("a"), user("b")]
TURNS = (("user", "q"), ("assistant", "a"), ("user", "b"))
ASKED = "\n\nuser: q\n\nassistant: a\n\nuser: b\n\nassistant:"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"messages": [*SAID, assistant("c")]}, Text(ASKED, " c", TURNS)),
        ({"prompt": SAID, "completion": [assistant("c")]}, Text(ASKED, " c", TURNS)),
        ({"prompt": SAID, "response": "c"}, Text(ASKED, "c", TURNS)),
        ({"prompt": SAID, "response": None, "completion": "c"}, Text(ASKED, "c", TURNS)),
        ({"prompt": SAID, "chosen": [assistant("c")], "rejected": [assistant("r")]},
         Text(ASKED, " c", TURNS)),
        ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "b"},
                            {"from": "gpt", "value": "c"}]},
         Text("\n\nsystem: s\n\nuser: b\n\nassistant:", " c", (("system", "s"), ("user", "b")))),
        ({"prompt": "b", "completion": [assistant("c")]},
         Text("\n\nuser: b\n\nassistant:", " c", (("user", "b"),))),
        ({"prompt": "b", "completion": "c"}, Text("b", "c")),
    ],
)  # fmt: skip
def test_the_last_answer_of_a_conversation_is_learnt(tmp_path, row, text, chat_tokenizer):
    path = write(tmp_path, "a.jsonl", [json.dumps(row)])
    assert list(load_texts(path)) == [text]
    (rendered,) = with_template([text], chat_tokenizer, "auto")
    turns = text.turns or (("user", "b"),)
    shown = "".join(f"<{role}>{said}" for role, said in turns)
    assert rendered == Text(f"{shown}<assistant>", "c")
    assert with_template([text], chat_tokenizer, "never") == [text]


def test_sft_and_ppo_read_the_same_prompt(tmp_path, tokenizer, chat_tokenizer):
    texts = load_texts(
        write(tmp_path, "a.jsonl", [json.dumps({"messages": [*SAID, assistant("c")]})])
    )
    path = write(tmp_path, "b.jsonl", [json.dumps({"prompt": SAID})])
    data = Data(prompts=str(path), heldout_fraction=0)
    for one in (tokenizer, chat_tokenizer):
        (asked,) = load_prompts(data, one, 0).train
        assert [text.prompt for text in with_template(texts, one, "auto")] == [asked.text]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (
            {"messages": SAID},
            "'messages' ends with a message by 'user': what is learnt is the assis",
        ),
        (
            {"messages": [assistant("c")]},
            "'messages' is an answer alone: a message to answer stands",
        ),
        ({"messages": "q"}, "'messages' is a text: give a list of messages"),
        ({"messages": []}, "'messages' is an empty list"),
        ({"messages": [user("q"), assistant(" ")]}, "the last message of 'messages' is empty"),
        ({"messages": None}, r"'messages' is nothing \(null\)"),
        ({"prompt": SAID, "response": 3}, "'response' is a number: give a text or a list of mess"),
        ({"prompt": [*SAID, assistant("c")], "response": "d"}, "'prompt' ends with the answer of"),
        ({"prompt": "", "completion": [assistant("c")]}, "'prompt' is empty"),
        ({"completion": "c"}, "no column 'prompt'"),
    ],
)
def test_a_conversation_that_teaches_nothing_is_a_bad_row(tmp_path, row, fault):
    path = write(tmp_path, "a.jsonl", [json.dumps(row)])
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: {fault}"):
        load_texts(path)


def test_a_conversation_that_the_template_refuses_is_a_bad_row(tmp_path):
    template = "{% for m in messages %}{{ raise_exception('none') if m['role'] == 'system' "
    tokenizer = character_tokenizer(template=template + "else m['content'] }}{% endfor %}")
    refused = {"messages": [{"role": "system", "content": "s"}, *SAID, assistant("c")]}
    rows = [{"messages": [user("q"), assistant("a")]}, refused]
    texts = load_texts(write(tmp_path, "a.jsonl", map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"a\.jsonl:2: the chat template refuses .*Mend the row$"):
        with_template(texts, tokenizer, "auto")
    bad = BadRows("skip")
    assert with_template(texts, tokenizer, "auto", bad) == [Text("q", "a")]
    assert bad.count == 1 and "a.jsonl:2: the chat template refuses" in bad.first


def test_the_source_goes_by_the_name_that_it_is_given(tmp_path):
    path = write(tmp_path, "a.jsonl", ["{"])
    with pytest.raises(ValueError, match=r"^the input:1: broken JSON.* such rows: --skip skip$"):
        load_texts(path, called="the input", flag="--skip")
    with pytest.raises(
        ValueError, match=r"^the input holds no text: its one row is bad: the input:1"
    ):
        load_texts(path, called="the input", on_bad_row="skip")
    path = tmp_path / "b.txt"
    path.write_bytes("it".encode("utf-16"))
    with pytest.raises(ValueError, match=r"^the input is UTF-16 .* FILE\.txt > FILE\.new\.txt$"):
        load_texts(path, called="the input")
