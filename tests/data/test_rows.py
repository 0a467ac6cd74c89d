import gzip
import json
import shutil
import subprocess

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.data.escapes import escape, unescape
from rlhf_ray.data.faults import BadRows, skipped
from rlhf_ray.data.rows import read_rows
from rlhf_ray.data.split import heldout_mask


def rows(path, on_bad_row="fail"):
    return [(row.line, row.value) for row in read_rows(path, BadRows(on_bad_row))]


def test_only_newlines_end_a_line_and_empty_lines_count_but_give_no_row(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\u2028still one\x85\n\n two \r\nlast".encode())
    assert rows(path) == [(1, "one\u2028still one\x85"), (3, " two "), (4, "last")]


def test_bytes_that_are_no_text_are_a_bad_row(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n\xff\xfe\nfine\n")
    with pytest.raises(ValueError, match=r"a\.txt:2: not UTF-8"):
        rows(path)
    bad = BadRows("skip")
    assert [row.value for row in read_rows(path, bad)] == ["fine", "fine"]
    assert bad.count == 1
    assert bad.examples[0].startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"a": 1', "broken JSON"),
        ('{"a": 1}}', "broken JSON"),
        ("[1]", "a list, not a JSON object"),
        ("3", "a number, not a JSON object"),
        ("null", r"nothing \(null\), not a JSON object"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": ' + "9" * 5000 + "}", "broken JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": "\t"}', "control character"),
        (" ", "broken JSON"),
    ],
)
def test_broken_json_names_file_line_and_fault(tmp_path, line, fault):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"x": 1}}\n{line}\n{{"x": 2}}\n')
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: .*{fault}.*--data\.on-bad-row skip"):
        rows(path)
    assert rows(path, "skip") == [(1, {"x": 1}), (3, {"x": 2})]


def test_every_kind_of_source_gives_the_same_rows(tmp_path):
    values = [{"text": "好", "n": [1, 2]}, {"text": "b\n", "n": []}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(v) + "\n" for v in values))
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet")
    data = datasets.Dataset.from_list(values)
    data.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(
        str(tmp_path / "splits")
    )
    wanted = list(enumerate(values, 1))
    for name in ("a.jsonl", "a.parquet", "saved", "splits"):
        assert rows(tmp_path / name) == wanted
    assert rows(f"{tmp_path}/splits:test") == [(1, values[1])]


def test_what_cannot_be_read_at_all_is_told_at_once(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "a.parquet").write_text("not parquet")
    (tmp_path / "a.xlsx").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.md").write_text("x")
    directory = r"is a directory without data \(it holds {}\): give a file, or a directory that"
    for name, message in (
        (tmp_path / "none.txt", "there is no file"),
        (tmp_path / "a.csv", rf"ends in \.csv; known are .*: python -c .* {tmp_path}/a\.jsonl$"),
        (tmp_path / "a.xlsx", r"ends in \.xlsx; known are \.json, .*: save it as one of them$"),
        (tmp_path / "a.parquet", "cannot be read as parquet"),
        (tmp_path / "empty", directory.format("nothing")),
        (tmp_path / "other", directory.format(r"notes\.md")),
        ("nobody/nothing-of-this-name", "neither a file here nor a data set"),
    ):
        with pytest.raises(ValueError, match=message):
            rows(name)


OBJECTS = [{"text": "好"}, {"text": "it broke"}]
WHOLE_FILES = {
    "array": ("a.json", json.dumps(OBJECTS).encode(), "a.json:1: the file is one JSON array", "jq"),
    "an array, indented": (
        "a.jsonl", json.dumps(OBJECTS, indent=1).encode(), "a.jsonl:1: the file is one JSON array",
        "jq",
    ),
    "objects, indented": (
        "a b.jsonl", "\n".join(json.dumps(row, indent=1) for row in OBJECTS).encode(),
        "a b.jsonl:1: the file is JSON over several lines", "jq",
    ),
    "gzip": ("a.txt", gzip.compress("好\nit broke\n".encode()), "is compressed by gzip", "gunzip"),
    "gzip, named": ("a.txt.gz", gzip.compress("好\nit broke".encode()), "ends in .gz", "gunzip"),
    "UTF-16": ("a.txt", "好\nit broke\n".encode("utf-16"), "is UTF-16 text, not UTF-8", "iconv"),
    "UTF-16, unmarked": ("a.txt", "it broke\n好".encode("utf-16-le"), "is UTF-16LE text", "iconv"),
    "GB18030": (
        "a.txt", "水壶很好，不错。\nit broke\n".encode("gb18030"),
        "a.txt:1: not UTF-8 text (byte 2 of the line); the whole file seems to be GB18030", "iconv",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WHOLE_FILES)
def test_a_file_that_is_wrong_as_a_whole_is_told_with_the_command_that_mends_it(kind, tmp_path):
    name, content, cause, tool = WHOLE_FILES[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        rows(path)
    said = str(caught.value)
    assert cause in said and "on-bad-row" not in said
    command = said[said.index(f": {tool}") + 2 :]
    if shutil.which(tool) is None:
        return
    subprocess.run(["sh", "-c", command], check=True)
    (mended,) = set(tmp_path.iterdir()) - {path}
    found = [value["text"] if isinstance(value, dict) else value for _, value in rows(mended)]
    assert sorted(found) == sorted(["it broke", "水壶很好，不错。" if kind == "GB18030" else "好"])


def test_zip_and_parquet_under_another_name_are_said(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.jsonl")
    (tmp_path / "a.txt").write_bytes(b"PK\x03\x04more")
    with pytest.raises(ValueError, match=r"a\.jsonl is parquet: give it a name that ends in"):
        rows(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=rf"a\.txt is a zip archive: unzip {tmp_path}/a\.txt$"):
        rows(tmp_path / "a.txt")


def test_lines_in_another_encoding_are_bad_rows_where_others_are_utf8(tmp_path):
    path = tmp_path / "a.txt"
    others = "水壶\n".encode("gb18030") + "olé\n".encode("latin-1")
    path.write_bytes("好\n不错\n".encode() + others)
    bad = BadRows("skip")
    assert [row.value for row in read_rows(path, bad)] == ["好", "不错"]
    assert bad.examples == [f"{path}:{n}: not UTF-8 text (byte {at} of the line)"
                            for n, at in ((3, 2), (4, 2))]  # fmt: skip
    path.write_bytes("Zoë, naïve\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"\(byte 2 of the line\)\. Mend the row, or skip"):
        rows(path)


@pytest.mark.parametrize("header", ["chosen\trejected", "Prompt\t chosen\tREJECTED", "text"])
def test_a_header_of_a_tsv_is_refused(tmp_path, header):
    path = tmp_path / "a.tsv"
    path.write_text(f"\n{header}\nyes\tno\n")
    names = ", ".join(name.strip() for name in header.split("\t"))
    wanted = rf"a\.tsv:2: the line names columns \({names}\), and a \.tsv has none: .*Take the line"
    with pytest.raises(ValueError, match=wanted):
        rows(path, "skip")
    path.write_text("chosen\tthe text that was chosen\nchosen\trejected\n")
    assert len(rows(path)) == 2
    path.rename(tmp_path / "a.txt")
    assert len(rows(tmp_path / "a.txt")) == 2


def test_the_first_bad_row_is_told_where_nothing_else_is_left():
    bad = BadRows("skip")
    assert str(bad.none_left("a.txt", "text")) == (
        "a.txt holds no text: it is empty; give one with at least one"
    )
    bad.add("a.txt", 2, "it is empty")
    assert str(bad.none_left("a.txt", "text")) == (
        "a.txt holds no text: its one row is bad: a.txt:2: it is empty"
    )
    bad.add("a.txt", 3, "broken")
    assert str(bad.none_left("a.txt", "text")) == (
        "a.txt holds no text: all 2 rows are bad, the first: a.txt:2: it is empty"
    )
    assert skipped(2, bad.first) == "2 bad rows skipped, the first: a.txt:2: it is empty"
    with pytest.raises(ValueError, match=r"a:1: x\. Mend the row, or skip such rows: --skip skip$"):
        BadRows(flag="--skip").add("a", 1, "x")
    with pytest.raises(ValueError, match=r"a:1: x\. Mend the row$"):
        BadRows(flag="").add("a", 1, "x")


NOT_UTF8 = [b"fine", b"\xff\xfe", b"also fine", b"ab\xff"]


def table_of(values):
    """A column `text` of these bytes, which Arrow holds as text without looking at them."""
    held = pa.array(values, type=pa.binary())
    return pa.table({"n": range(len(values)), "text": pa.Array.from_buffers(
        pa.string(), len(values), held.buffers())})  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "data set"])
def test_columns_that_are_no_text_are_bad_rows(tmp_path, kind):
    path = tmp_path / "a.parquet"
    pq.write_table(table_of(NOT_UTF8), path)
    if kind == "data set":
        path = tmp_path / "saved"
        datasets.Dataset(table_of(NOT_UTF8)).save_to_disk(str(path))
    with pytest.raises(ValueError, match=rf"{path}:2: .*not UTF-8.*--data\.on-bad-row skip"):
        rows(path)
    bad = BadRows("skip")
    found = [(row.line, row.value["text"]) for row in read_rows(path, bad)]
    assert found == [(1, "fine"), (3, "also fine")]
    assert [example.removeprefix(f"{path}:")[:2] for example in bad.examples] == ["2:", "4:"]


def test_a_broken_file_of_a_data_set_is_told_with_its_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(ValueError, match=rf"{tmp_path}/data' .*JSON parse error.*mend that file"):
        rows(tmp_path / "data", "skip")


@given(st.text())
def test_unescape_is_the_inverse_of_escape(text):
    cell = escape(text)
    assert not set(cell) & set("\t\n\r")
    assert unescape(cell) == text


def test_escapes_by_hand_and_other_backslashes_stay():
    assert escape("a\tb\\n\n") == r"a\tb\\n\n"
    assert unescape(r'"quoted" 上网\下载 \d') == r'"quoted" 上网\下载 \d'


@given(st.lists(st.text(max_size=3), max_size=40), st.floats(0.01, 0.99), st.integers(0, 9))
def test_no_text_is_on_both_sides_and_no_side_is_empty(texts, fraction, seed):
    if len(set(texts)) < 2:
        wanted = "^the data has only one text, .* or set --data.heldout-fraction 0$"
        with pytest.raises(ValueError, match=wanted):
            heldout_mask(texts, fraction, seed)
        return
    mask = heldout_mask(texts, fraction, seed)
    held = {t for t, m in zip(texts, mask, strict=True) if m}
    kept = {t for t, m in zip(texts, mask, strict=True) if not m}
    assert held and kept and not held & kept
    backwards = heldout_mask(texts[::-1], fraction, seed)
    assert backwards[::-1] == mask


def test_the_share_held_out_is_what_was_asked_for_and_a_text_keeps_its_side():
    texts = [str(i) for i in range(20_000)]
    mask = heldout_mask(texts, 0.1, seed=3)
    assert 1_800 < sum(mask) < 2_200  # 4.7 deviations
    assert heldout_mask(texts[:5_000], 0.1, seed=3) == mask[:5_000]
    assert heldout_mask(texts, 0.1, seed=4) != mask
    assert not any(heldout_mask(texts, 0, seed=3))
    with pytest.raises(ValueError, match="below 1"):
        heldout_mask(texts, 1.0, seed=3)
