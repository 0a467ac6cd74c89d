import json

import pytest

from rlhf_ray.data.texts import Text, load_texts, split_texts, with_template


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


def test_a_cell_means_the_same_alone_in_its_line(tmp_path):
    found = load_texts(write(tmp_path, "a.tsv", [r"a\tb"]))
    assert found[0] == Text("", "a\tb")


def test_bad_rows(tmp_path):
    rows = ['{"text": "a"}', '{"prompt": "p"}', '{"response": "r"}', '{"text": null}', "{"]
    path = write(tmp_path, "a.jsonl", rows)
    wanted = r"a\.jsonl:2: neither 'text', nor 'prompt' and 'response', nor a ranking"
    with pytest.raises(ValueError, match=wanted):
        load_texts(path)
    found = load_texts(path, on_bad_row="skip")
    assert (len(found), found.bad_rows) == (1, 4)
    with pytest.raises(ValueError, match=r"a\.tsv:1: cell 2 is empty"):
        load_texts(write(tmp_path, "a.tsv", ["a\t\tb"]))
    with pytest.raises(ValueError, match="holds no text"):
        load_texts(write(tmp_path, "b.txt", []))


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
        Text("\n\nHuman: hi\n\nAssistant:", " yes"),
    ]
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
