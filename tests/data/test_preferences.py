import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.data.preferences import (
    RankedList,
    absolute_parts,
    load_lists,
    write_jsonl,
    write_tsv,
)
from rlhf_ray.data.ranked_list import Comparison
from tests.data.characters import character_tokenizer

HH = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: a joke\n\nAssistant:"


def lists_of(tmp_path, *rows, name="a.jsonl", **options):
    path = tmp_path / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return load_lists(path, **options)


def content_of(one):
    return one.prompt, one.responses, one.ranks


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_tsv_of_any_length_keeps_quotes_and_unescapes(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('"best"\tso "so"\tworst\n' + r"a\tb\n" + "\t" + r"\\(≧▽≦)/" + "\n")
    first, second = load_lists(path)
    assert content_of(first) == ("", ('"best"', 'so "so"', "worst"), (1, 2, 3))
    assert content_of(second) == ("", ("a\tb\n", "\\(≧▽≦)/"), (1, 2))
    assert (second.source, second.line) == (str(path), 2)


def test_ranked_json_with_ties_annotator_and_time(tmp_path):
    row = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}
    notes = {"annotator": "ann", "time": "2024-05-01T10:00"}
    found = lists_of(tmp_path, row | notes, {**row, "prompt": None, "id": 7})
    assert content_of(found[0]) == ("p", ("a", "b", "c"), (2, 1, 2))
    assert (found[0].annotator, found[0].time) == ("ann", "2024-05-01T10:00")
    assert content_of(found[1]) == ("", ("a", "b", "c"), (2, 1, 2))
    assert found[1].annotator is None


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        ({"prompt": "p", "selected": "s", "rejected": "r"}, "p", ("s", "r")),
        ({"chosen": f"{HH} ha\n\nha", "rejected": f"{HH} no"}, HH, (" ha\n\nha", " no")),
        ({"chosen": f"{HH} half way", "rejected": f"{HH} half"}, HH, (" half way", " half")),
        ({"chosen": f"{HH} said", "rejected": HH}, HH, (" said", "")),
        ({"chosen": "The sky is blue", "rejected": "The sky is red"}, "",
         ("The sky is blue", "The sky is red")),
        ({"context": [{"role": "Human", "text": "问"}],
          "chosen": {"role": "Assistant", "text": "好"},
          "rejected": {"role": "Assistant", "text": "坏"}},
         "\n\nuser: 问\n\nassistant:", (" 好", " 坏")),
        ({"context": [{"from": "Human", "content": "q"}, {"from": "Assistant", "value": "a"},
                      {"from": "Human", "value": "q2"}],
          "chosen": {"from": "Assistant", "content": "x"},
          "rejected": {"from": "Assistant", "value": "y"}},
         "\n\nuser: q\n\nassistant: a\n\nuser: q2\n\nassistant:", (" x", " y")),
        ({"prompt": "p ", "chosen": "c", "rejected": "r"}, "p ", ("c", "r")),
        ({"prompt": [user("q")], "chosen": [assistant("c")], "rejected": [assistant("r")]},
         "\n\nuser: q\n\nassistant:", (" c", " r")),
        ({"prompt": "q", "chosen": [assistant("c")], "rejected": [assistant("r")]},
         "\n\nuser: q\n\nassistant:", (" c", " r")),
        ({"prompt": "q", "chosen": [user("q"), assistant("c")],
          "rejected": [user("q"), assistant("r")]}, "\n\nuser: q\n\nassistant:", (" c", " r")),
        ({"chosen": [user("q"), assistant("a"), user("b"), assistant("c")],
          "rejected": [user("q"), assistant("a"), user("b"), assistant("r")]},
         "\n\nuser: q\n\nassistant: a\n\nuser: b\n\nassistant:", (" c", " r")),
        ({"chosen": [user("q"), assistant("c"), user("more"), assistant("d")],
          "rejected": [user("q"), assistant("r")]},
         "\n\nuser: q\n\nassistant:", (" c\n\nuser: more\n\nassistant: d", " r")),
    ],
)  # fmt: skip
def test_each_pair_format(tmp_path, row, prompt, responses):
    (one,) = lists_of(tmp_path, row)
    assert content_of(one) == (prompt, responses, (1, 2))


def test_the_whole_transcript_is_prompt_and_response(tmp_path):
    rows = [
        {
            "chosen": f"{HH} one\n\nHuman: no\n\nAssistant: two",
            "rejected": f"{HH} one\n\nHuman: why",
        },
        {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"},
    ]
    for one, row in zip(lists_of(tmp_path, *rows), rows, strict=True):
        assert [one.prompt + r for r in one.responses] == [row["chosen"], row["rejected"]]


def test_chat_template_renders_conversations_and_prompts(tmp_path, chat_tokenizer):
    rows = [
        {"prompt": "p", "selected": "s", "rejected": "r"},
        {"chosen": f"{HH} c", "rejected": f"{HH} r"},
        {"prompt": [user("q")], "chosen": [assistant("c")], "rejected": [assistant("r")]},
        {"prompt": "", "responses": ["c", "r"], "ranks": [1, 2]},
    ]
    found = lists_of(tmp_path, *rows, tokenizer=chat_tokenizer)
    assert [one.prompt for one in found] == [
        "<user>p<assistant>",
        "<user>hi<assistant>yes?<user>a joke<assistant>",
        "<user>q<assistant>",
        "",
    ]
    assert [one.responses for one in found] == [("s", "r"), ("c", "r"), ("c", "r"), ("c", "r")]
    assert [one.group for one in found] == ["p", "hi", "q", ""]
    never = lists_of(tmp_path, *rows, tokenizer=chat_tokenizer, chat_template="never")
    assert never == lists_of(tmp_path, *rows)


REFUSING = (
    "{% for m in messages %}{% if m['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('only user and assistant') }}{% endif %}<{{ m['role'] }}>"
    "{{ m['content'] }}{% endfor %}<assistant>"
)


def test_a_conversation_that_the_template_refuses_is_a_bad_row(tmp_path):
    refused = {"prompt": [{"role": "tool", "content": "q"}], "selected": "s", "rejected": "r"}
    rows = [{"prompt": "p", "selected": "s", "rejected": "r"}, refused]
    tokenizer = character_tokenizer(template=REFUSING)
    fault = r"a\.jsonl:2: the chat template refuses messages by tool: only user and assistant"
    with pytest.raises(ValueError, match=fault):
        lists_of(tmp_path, *rows, tokenizer=tokenizer)
    found = lists_of(tmp_path, *rows, tokenizer=tokenizer, on_bad_row="skip")
    assert [one.prompt for one in found] == ["<user>p<assistant>"] and found.bad_rows == 1


def test_a_template_that_is_broken_is_no_fault_of_a_row(tmp_path):
    row = {"prompt": "p", "selected": "s", "rejected": "r"}
    tokenizer = character_tokenizer(template="{% for m in messages %}")
    with pytest.raises(ValueError, match=r"template of the tokenizer .* is broken: .*never$"):
        lists_of(tmp_path, row, tokenizer=tokenizer, on_bad_row="skip")


def test_parquet_and_saved_data_sets_read_the_same(tmp_path):
    rows = [
        {"prompt": [user("q")], "chosen": [assistant("c")], "rejected": [assistant("r")]},
        {"prompt": [user("q2")], "chosen": [assistant("c2")], "rejected": [assistant("r2")]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    wanted = [content_of(one) for one in lists_of(tmp_path, *rows)]
    for name in ("a.parquet", "saved"):
        assert [content_of(one) for one in load_lists(tmp_path / name)] == wanted


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"responses": ["a", "b"]}, "fit no format"),
        ({"prompt": "p", "chosen": "c"}, "fit no format"),
        ({"responses": ["a", "b"], "ranks": [1]}, "2 responses and 1 ranks"),
        ({"responses": ["a", "b"], "ranks": [1, 1]}, "no two different responses"),
        ({"responses": ["a"], "ranks": [1]}, "no two different responses"),
        ({"responses": ["a", "a"], "ranks": [1, 2]}, "no two different responses"),
        ({"responses": ["a", "b"], "ranks": [1, "2"]}, "rank '2' is not a whole number"),
        ({"responses": ["a", "b"], "ranks": [1, 2**63]}, "rank 9223372036854775808 has more than"),
        ({"responses": ["a", " "], "ranks": [1, 2]}, "response 2 is empty"),
        ({"responses": "ab", "ranks": [1, 2]}, "'responses' is a text: .* are lists"),
        ({"responses": ["a", "b\0"], "ranks": [1, 2]}, r"response 2 holds a NUL character \(at 1"),
        ({"prompt": [user("q"), assistant("a")], "responses": ["a", "b"], "ranks": [1, 2]},
         "'prompt' ends with the answer of 'assistant': leave that out"),
        ({"prompt": [user("q"), assistant("a")], "chosen": [assistant("c")],
          "rejected": [assistant("r")]}, "'prompt' ends with the answer of 'assistant'"),
        ({"prompt": [user("q"), {"from": "gpt", "value": "a"}], "selected": "s", "rejected": "r"},
         "'prompt' ends with the answer of 'gpt'"),
        ({"context": [user("q"), assistant("a")], "chosen": assistant("c"),
          "rejected": assistant("r")}, "'context' ends with the answer"),
        ({"prompt": 3, "selected": "s", "rejected": "r"},
         "'prompt' is a number: give a text or a list of messages"),
        ({"prompt": "x", "chosen": "a", "rejected": None}, r"'rejected' is nothing \(null\)"),
        ({"prompt": "x", "chosen": None, "rejected": None, "ranks": None},
         r"'chosen' and 'rejected' are nothing \(null\)"),
        ({"chosen": 1, "rejected": "r"}, "'chosen' is a number: give a text or a list of messages"),
        ({"chosen": [user("q"), assistant("c")], "rejected": assistant("r")},
         "'rejected' is an object: give a text or a list of messages"),
        ({"prompt": "p", "chosen": "c", "rejected": assistant("r")},
         "'rejected' is an object: give a text or a list of messages"),
        ({"context": "q", "chosen": user("a"), "rejected": user("b")},
         "'context' is a text: give a list of messages"),
        ({"context": [user("q")], "chosen": "a", "rejected": "b"},
         r"'chosen' is a text \('a'\); a message is an object"),
        ({"chosen": [user("a"), assistant("c")], "rejected": [user("b"), assistant("r")]},
         "do not begin with the same question"),
        ({"prompt": "p", "chosen": [user("a"), assistant("c")],
          "rejected": [user("b"), assistant("r")]}, "do not begin with the same question"),
        ({"chosen": [assistant("c")], "rejected": [assistant("r")]},
         "do not begin with the same question"),
        ({"question": "Q", "chosen": "c", "rejected": "r"},
         r"no prompt, and a column 'question': name it \(data.prompt_column: question\)"),
        ({"instruction": "Q", "responses": ["c", "r"], "ranks": [1, 2]}, "a column 'instruction'"),
        ({"chosen": [user("q"), assistant("c")], "rejected": [user("q"), user("r")]},
         "chosen is by 'assistant' and rejected by 'user'"),
        ({"context": [], "chosen": user("a"), "rejected": user("b")}, "at least one message"),
        ({"context": [{"role": "user", "content": "a", "text": "b"}], "chosen": user("a"),
          "rejected": user("b")}, "a message has one of"),
        ({"chosen": [3], "rejected": [4]}, "a message is an object"),
        ({"chosen": "x", "rejected": [user("x")]}, "'rejected' is a list, not a text"),
    ],
)  # fmt: skip
def test_a_bad_list_says_what_is_wrong(tmp_path, row, fault):
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .*{fault}"):
        lists_of(tmp_path, row)


PROMPTED = [
    {"responses": ["yes", "no"], "ranks": [1, 2]},
    {"selected": "yes", "rejected": "no"},
    {"chosen": "yes", "rejected": "no"},
]


@pytest.mark.parametrize("row", PROMPTED)
def test_the_prompt_is_read_from_the_column_that_is_named(tmp_path, row, chat_tokenizer):
    found = lists_of(
        tmp_path,
        {"question": "Q1", "prompt": "of others"} | row,
        {"prompt": "as written here", "question": None} | row,
        prompt_column="question",
    )
    assert [content_of(one) for one in found] == [
        ("Q1", ("yes", "no"), (1, 2)),
        ("as written here", ("yes", "no"), (1, 2)),
    ]
    asked = {"question": [user("Q1")]} | row
    (one,) = lists_of(tmp_path, asked, tokenizer=chat_tokenizer, prompt_column="question")
    assert (one.prompt, one.group) == ("<user>Q1<assistant>", "Q1")
    with pytest.raises(ValueError, match=r"a\.jsonl:1: 'question' is a number: give a text"):
        lists_of(tmp_path, {"question": 3} | row, prompt_column="question")


def test_conversations_that_part_with_a_question_part_at_the_answer_before_it(tmp_path):
    shared = [user("q"), assistant("a")]
    (one,) = lists_of(
        tmp_path,
        {
            "chosen": [*shared, user("b"), assistant("c")],
            "rejected": [*shared, user("d"), assistant("e")],
        },
    )
    assert one.prompt == "\n\nuser: q\n\nassistant:"
    assert one.responses == (" a\n\nuser: b\n\nassistant: c", " a\n\nuser: d\n\nassistant: e")


def test_roles_that_other_makers_use_are_those_of_the_chat_template(tmp_path, chat_tokenizer):
    row = {"prompt": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}, user("b")]}
    (one,) = lists_of(tmp_path, row | PROMPTED[1], tokenizer=chat_tokenizer)
    assert one.prompt == "<user>q<assistant>a<user>b<assistant>"


def test_answers_by_one_role_under_two_names_are_one_answerer(tmp_path):
    row = {
        "context": [user("q")],
        "chosen": {"from": "gpt", "value": "c"},
        "rejected": assistant("r"),
    }
    (one,) = lists_of(tmp_path, row)
    assert content_of(one) == ("\n\nuser: q\n\nassistant:", (" c", " r"), (1, 2))


def test_a_file_without_lists(tmp_path):
    with pytest.raises(ValueError, match=r"a\.jsonl holds no ranked list: it is empty"):
        lists_of(tmp_path)
    with pytest.raises(ValueError, match=r"its one row is bad: .*a\.jsonl:1: the columns \[\] fit"):
        lists_of(tmp_path, {}, on_bad_row="skip")
    good, bad = tmp_path / "good.tsv", tmp_path / "bad.tsv"
    good.write_text("x\ty\none cell\n")
    bad.write_text("x\tx\n")
    with pytest.raises(ValueError, match=r"bad\.tsv holds no ranked list: its one row is bad: "):
        load_lists(f"{good},{bad}", on_bad_row="skip")
    found = load_lists(f"{good},{good}", on_bad_row="skip")
    assert found.bad_rows == 2 and found.first_bad.startswith(f"{good}:2: one cell: ")


def test_a_list_in_code_is_checked_too():
    for responses, ranks in ((("a", "b"), (1,)), (("a", "b"), (1, 1)), (("a",), (1,))):
        with pytest.raises(ValueError, match="responses"):
            RankedList("", responses, ranks, "here", 1)


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.text(CHARACTERS, min_size=1, max_size=8).filter(str.strip)


@st.composite
def ranked_lists(draw, *, ties=True, prompt=TEXTS):
    responses = draw(st.lists(TEXTS, min_size=2, max_size=5, unique=True))
    if ties:
        ranks = draw(st.lists(st.integers(-3, 9), min_size=len(responses), max_size=len(responses)))
        if len(set(ranks)) == 1:
            ranks[0] += 1
    else:
        ranks = draw(st.permutations(range(1, len(responses) + 1)))
    note = st.none() | st.text(CHARACTERS, max_size=4)
    return RankedList(
        draw(prompt),
        tuple(responses),
        tuple(ranks),
        "?",
        0,
        draw(note),
        draw(note),
        pairs=tuple(draw(st.lists(comparisons(len(responses)), max_size=3))) if ties else (),
    )


@st.composite
def comparisons(draw, responses):
    better, worse = draw(st.permutations(range(responses)))[:2]
    number = st.floats(-9, 9, allow_nan=False)
    return Comparison(better, worse, draw(number), draw(st.floats(0, 1)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lists")


@given(st.lists(ranked_lists(), min_size=1, max_size=4))
def test_jsonl_round_trip_is_exact(folder, lists):
    path = folder / "a.jsonl"
    write_jsonl(path, lists)
    place = {"source": str(path)}
    assert list(load_lists(path)) == [
        replace(one, line=n, group=one.prompt, **place) for n, one in enumerate(lists, 1)
    ]


@given(st.lists(ranked_lists(ties=False, prompt=st.just("")), min_size=1, max_size=4))
def test_tsv_round_trip_is_exact_best_first(folder, lists):
    path = folder / "a.tsv"
    write_tsv(path, lists)
    for one, back in zip(lists, load_lists(path), strict=True):
        best_first = [one.responses[one.ranks.index(r)] for r in sorted(one.ranks)]
        assert list(back.responses) == best_first
        assert back.ranks == tuple(range(1, len(best_first) + 1))


def test_tsv_refuses_what_it_cannot_hold(tmp_path):
    tied = RankedList("", ("a", "b", "c"), (1, 1, 2), "s", 4)
    prompted = RankedList("p", ("a", "b"), (1, 2), "s", 4)
    for one in (tied, prompted):
        with pytest.raises(ValueError, match=r"s:4 has a prompt, a tie or pairs.*\.jsonl"):
            write_tsv(tmp_path / "a.tsv", [one])


def test_a_list_without_pairs_compares_every_two_of_unequal_rank():
    one = RankedList("", ("a", "b", "c", "d"), (2, 1, 2, 0), "s", 1)
    found = {(pair.better, pair.worse) for pair in one.comparisons()}
    assert found == {(1, 0), (3, 0), (1, 2), (3, 1), (3, 2)}
    assert all(pair.margin == 0 and pair.target == 1 for pair in one.comparisons())


def test_pairs_replace_the_order_of_ranks_and_a_margin_belongs_to_a_pair(tmp_path):
    path = tmp_path / "a.jsonl"
    pairs = [{"better": 2, "worse": 0, "margin": 0.5}, {"better": 1, "worse": 0, "target": 0.9}]
    ranked = {"responses": ["a", "b", "c"], "ranks": [1, 2, 3]}
    rows = [
        ranked | {"pairs": pairs},
        {"prompt": "p", "selected": "x", "rejected": "y", "margin": 2},
        {"responses": ["x", "y"], "ranks": [2, 1], "margin": -1.5},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second, third = load_lists(path)
    assert first.comparisons() == (Comparison(2, 0, 0.5), Comparison(1, 0, 0.0, 0.9))
    assert second.comparisons() == (Comparison(0, 1, 2.0),)
    assert third.comparisons() == (Comparison(1, 0, -1.5),)
    faults = {
        "places among its 3": ranked | {"pairs": [{"better": 3, "worse": 0}]},
        "compared with itself": ranked | {"pairs": [{"better": 1, "worse": 1}]},
        "a target a probability": ranked | {"pairs": [pairs[0] | {"target": 1.5}]},
        "are numbers": ranked | {"pairs": [pairs[0] | {"margin": "1"}]},
        "is a list of objects": ranked | {"pairs": []},
        "this list is none": ranked | {"margin": 1.0},
    }
    for fault, row in faults.items():
        path.write_text(json.dumps(row))
        with pytest.raises(ValueError, match=f"a.jsonl:1: .*{fault}"):
            load_lists(path)


def test_a_prompt_that_is_a_transcript_keeps_its_conversation(tmp_path):
    path = tmp_path / "a.jsonl"
    whole = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Tea or coffee?\n\nAssistant:"
    path.write_text(json.dumps({"prompt": whole, "responses": [" Tea", " No"], "ranks": [1, 2]}))
    (found,) = load_lists(path)
    assert found.prompt == whole and found.group == "Hi"


def test_paths_of_a_mixture_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.tsv", "b.tsv"):
        (tmp_path / name).write_text("x\ty\n")
    assert absolute_parts("a.tsv") == f"{tmp_path}/a.tsv"
    assert absolute_parts("a.tsv=2,b.tsv") == f"{tmp_path}/a.tsv=2,{tmp_path}/b.tsv=1"
    assert absolute_parts("owner/name") == "owner/name"
    with pytest.raises(ValueError, match=r"c.tsv: there is no such file"):
        absolute_parts("a.tsv=2,c.tsv")


def test_a_path_of_a_mixture_may_hold_an_equals_sign(tmp_path, monkeypatch):
    folder = tmp_path / "run=3"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("a.tsv", "b.tsv"):
        (folder / name).write_text(f"{name}\ty\n")
    named = absolute_parts("a.tsv=2,b.tsv")
    assert named == f"{folder}/a.tsv=2,{folder}/b.tsv=1" == absolute_parts(named)
    monkeypatch.chdir(tmp_path)
    for mixture in (named, "run=3/a.tsv=2,run=3/b.tsv"):
        assert [one.responses[0] for one in load_lists(mixture)] == ["a.tsv", "a.tsv", "b.tsv"]


def test_a_split_of_a_saved_data_set_is_a_part_like_any_other(tmp_path, monkeypatch):
    folder = tmp_path / "run=3"
    folder.mkdir()
    monkeypatch.chdir(folder)
    splits = {
        name: datasets.Dataset.from_list([{"prompt": "p", "selected": name, "rejected": "r"}])
        for name in ("train", "test")
    }
    datasets.DatasetDict(splits).save_to_disk("saved")
    (folder / "a.tsv").write_text("x\ty\n")
    for name in ("saved:test", "./saved:test", f"{folder}/saved:test"):
        assert absolute_parts(name) == f"{folder}/saved:test"
        assert [one.responses[0] for one in load_lists(name)] == ["test"]
    named = absolute_parts("saved:test=2,a.tsv")
    assert named == f"{folder}/saved:test=2,{folder}/a.tsv=1" == absolute_parts(named)
    monkeypatch.chdir(tmp_path)
    for mixture in (named, "run=3/saved:test=2,run=3/a.tsv"):
        assert [one.responses[0] for one in load_lists(mixture)] == ["test", "test", "x"]
    assert absolute_parts("owner/saved:test") == "owner/saved:test"
    with pytest.raises(ValueError, match=r"\./none:test: there is no such file or directory"):
        absolute_parts("./none:test")


def test_mixtures_take_each_part_by_its_weight(tmp_path):
    for name, count in (("a", 400), ("b", 30)):
        lines = [f"{name}{i}\t{name}-{i}\n" for i in range(count)]
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
    a, b = tmp_path / "a.tsv", tmp_path / "b.tsv"
    found = load_lists(f"{a}=0.25,{b}=2.5", seed=1)
    times = Counter((one.source, one.line) for one in found)
    assert {times[str(b), line] for line in range(1, 31)} == {2, 3}
    assert {times[str(a), line] for line in range(1, 401)} == {0, 1}
    assert 65 < sum(count for (source, _), count in times.items() if source == str(a)) < 135
    assert found == load_lists(f"{a}=0.25,{b}=2.5", seed=1)
    assert found != load_lists(f"{a}=0.25,{b}=2.5", seed=2)
    assert len(load_lists(f"{a},{b}")) == 430
    for wrong in (f"{a}=x,{b}", f"{a}=0,{b}", f"{a},", f"{a}=nan", f"{a}=inf"):
        with pytest.raises(ValueError, match="FILE=WEIGHT"):
            load_lists(wrong)
    with pytest.raises(ValueError, match="there is no file"):
        load_lists(f"{a},{tmp_path}/none.tsv")


def test_every_example_of_the_page_loads(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    section = page.split("## Ranked lists")[1].split("## Samples")[0]
    rows = re.findall(r"^\{.*\}$", section, re.MULTILINE)
    cells = [line for line in section.splitlines() if "\t" in line]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "a.tsv").write_text("\n".join(cells))
    assert len(load_lists(tmp_path / "a.jsonl")) == len(rows) == 8
    assert len(load_lists(tmp_path / "a.tsv")) == len(cells) == 1
