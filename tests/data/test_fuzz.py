"""No malformed row passes: each is an error with file and line, or is skipped and counted."""

import json
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlhf_ray.data.preferences import load_lists
from rlhf_ray.data.ranked_list import has_pair
from tests.data.preference_rows import GOOD, bad_line, good_line

FORMS = ["tsv", *GOOD]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "from",
                    "text",
                    "value",
                    "prompt",
                    "chosen",
                    "rejected",
                    "better",
                    "worse",
                    "margin",
                    "target",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
KEYS = ["prompt", "responses", "ranks", "annotator", "time", "selected", "context", "chosen",
        "rejected", "pairs", "margin"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def suffix(form):
    return "tsv" if form == "tsv" else "jsonl"


def check_bad_rows(folder, form, rng, count):
    """`count` bad rows among good ones: the first is named, and all are counted."""
    path = folder / f"{form}.{suffix(form)}"
    is_bad = [True] * count + [False] * max(1, count // 4)
    rng.shuffle(is_bad)
    path.write_bytes(b"".join((bad_line if b else good_line)(rng, form) + b"\n" for b in is_bad))
    found = load_lists(path, on_bad_row="skip")
    assert [one.line for one in found] == [n for n, b in enumerate(is_bad, 1) if not b]
    assert found.bad_rows == count
    with pytest.raises(ValueError) as error:
        load_lists(path)
    assert str(error.value).startswith(f"{path}:{is_bad.index(True) + 1}: ")


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 2**32))
@example(seed=791352)  # two bad lines that make an object together
def test_bad_rows_of_each_format(folder, form, seed):
    check_bad_rows(folder, form, random.Random(seed), count=3)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_ten_thousand_bad_rows_of_each_format(folder, form):
    rng = random.Random(form)
    path = folder / f"one.{suffix(form)}"
    for _ in range(10_000):
        line = bad_line(rng, form)
        path.write_bytes(line + b"\n")
        with pytest.raises(ValueError) as error:
            load_lists(path)
        assert str(error.value).startswith(f"{path}:1: "), line
    check_bad_rows(folder, form, rng, count=10_000)


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6))
def test_any_json_is_a_good_list_or_a_counted_fault(folder, row):
    path = folder / "any.jsonl"
    keeper = {"prompt": "", "responses": ["a", "b"], "ranks": [1, 2]}
    path.write_text(f"{json.dumps(keeper)}\n{json.dumps(row)}\n")
    found = load_lists(path, on_bad_row="skip")
    assert len(found) + found.bad_rows == 2
    for one in found:
        assert has_pair(one.responses, one.ranks)
        assert all(isinstance(text, str) for text in (one.prompt, *one.responses))
        assert all(type(rank) is int for rank in one.ranks)


@given(st.binary(max_size=60), st.sampled_from(["tsv", "jsonl"]))
def test_any_bytes_are_lists_or_counted_faults(folder, content, kind):
    path = folder / f"bytes.{kind}"
    keeper = b'{"responses": ["a", "b"], "ranks": [1, 2]}' if kind == "jsonl" else b"a\tb"
    path.write_bytes(keeper + b"\n" + content)
    found = load_lists(path, on_bad_row="skip")
    lines = sum(bool(line.removesuffix(b"\r")) for line in content.split(b"\n"))
    assert len(found) + found.bad_rows == lines + 1
