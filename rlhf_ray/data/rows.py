"""Rows of a text, JSON-lines or parquet file or of a `datasets` data set, each with its place.

A fault belongs to one row: `BadRows` decides whether it ends the run or is counted. What concerns
the whole file (missing, unreadable, unknown kind) is a ValueError at once.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rlhf_ray.data.escapes import unescape
from rlhf_ray.data.faults import BadRows, OnBadRow, RowFault, kind_of
from rlhf_ray.data.whole_file import reencoded, refuse_json, refuse_packed, renamed

__all__ = ["SUFFIXES", "BadRows", "OnBadRow", "Row", "RowFault", "on_disk", "read_rows"]

LINE_SUFFIXES = {".txt", ".tsv"}
JSON_SUFFIXES = {".jsonl", ".json", ".ndjson"}
SUFFIXES = LINE_SUFFIXES | JSON_SUFFIXES | {".parquet"}
BATCH_ROWS = 1024
# A line of a .tsv that has no other cells is a header.
COLUMNS = frozenset(
    ("text", "prompt", "response", "responses", "completion", "chosen", "rejected", "selected",
     "context", "messages", "conversations", "ranks", "margin")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """`value` is a line's text (.txt, .tsv) or a dict; `line` counts from 1."""

    source: str
    line: int
    value: str | dict[str, Any]

    def cells(self) -> list[str]:
        """Texts of a line: the cells of a .tsv, unescaped; otherwise the line as it is."""
        line = str(self.value)
        if not self.source.lower().endswith(".tsv"):
            return [line]
        return [unescape(cell) for cell in line.split("\t")]


def on_disk(name: str) -> tuple[Path, str] | None:
    """The file or directory that is meant, and what names a split in it: `DIR:SPLIT`, or `""`.

    None: nothing of that name is here.
    """
    if Path(name).exists():
        return Path(name), ""
    directory, colon, split = name.partition(":")
    return (Path(directory), colon + split) if Path(directory).is_dir() else None


def read_rows(path: str | Path, bad: BadRows, *, called: str | None = None) -> Iterator[Row]:
    """Rows of `path`: a file, a directory of `datasets.save_to_disk`, or a data set's name.

    A name may carry its configuration and split: `owner/name:config:split` (default split: train).
    Empty lines are no rows. called: the source's name in messages, its path unless given.
    Raises ValueError where nothing can be read.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if file.is_file():
        return _file_rows(file, called or str(file), bad)
    found = on_disk(str(path))
    is_directory = found is not None and found[0].is_dir()
    if not is_directory and (suffix in SUFFIXES or file.is_absolute()):
        raise ValueError(f"there is no file {path}: check the path (now in {Path.cwd()})")
    return _dataset_rows(str(path), bad)


def _file_rows(file: Path, name: str, bad: BadRows) -> Iterator[Row]:
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(sorted(SUFFIXES))
        raise ValueError(
            f"{name} ends in {suffix or 'no suffix'}; known are {known}: {renamed(file)}"
        )
    if suffix == ".parquet":
        return _parquet_rows(file, name, bad)
    content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    shown = file if name == str(file) else Path("FILE").with_suffix(suffix)
    refuse_packed(name, shown, content)
    lines = _lines(name, shown, content, bad)
    if suffix in LINE_SUFFIXES:
        return _text_rows(name, lines, is_table=suffix == ".tsv")
    refuse_json(name, shown, content)
    return _json_rows(name, lines, bad)


def _lines(name: str, file: Path, content: bytes, bad: BadRows) -> Iterator[tuple[int, str]]:
    r"""Numbered lines that are not empty. Only \n and \r\n end one."""
    fix: str | None = None
    for number, raw in enumerate(content.split(b"\n"), 1):
        raw = raw.removesuffix(b"\r")
        if not raw:
            continue
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            fix = reencoded(file, content) if fix is None else fix
            whole = "; the whole file seems to be GB18030" if fix else ""
            bad.add(
                name, number, f"not UTF-8 text (byte {error.start} of the line){whole}", fix=fix
            )
        else:
            yield number, line


def _text_rows(name: str, lines: Iterator[tuple[int, str]], *, is_table: bool) -> Iterator[Row]:
    for place, (number, line) in enumerate(lines):
        if is_table and not place:
            _refuse_header(name, number, line)
        yield Row(name, number, line)


def _refuse_header(name: str, number: int, line: str) -> None:
    cells = [cell.strip() for cell in line.split("\t")]
    if COLUMNS.issuperset(cell.lower() for cell in cells):
        raise ValueError(
            f"{name}:{number}: the line names columns ({', '.join(cells)}), and a .tsv has none: "
            f"each cell is a text, the best first. Take the line out, or write the rows as .jsonl "
            f"with these columns"
        )


def _json_rows(name: str, lines: Iterator[tuple[int, str]], bad: BadRows) -> Iterator[Row]:
    for number, line in lines:
        try:
            value = _parse_json(line)
        except RowFault as fault:
            bad.add(name, number, str(fault))
        else:
            yield Row(name, number, value)


def _parse_json(line: str) -> dict[str, Any]:
    """A JSON object, strictly: no NaN, no key twice. RowFault otherwise."""
    try:
        value = json.loads(line, parse_constant=_no_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise RowFault(f"broken JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise RowFault("broken JSON: nested too deeply") from None
    except RowFault:
        raise
    except ValueError as error:
        raise RowFault(f"broken JSON: {error}") from None
    if not isinstance(value, dict):
        raise RowFault(f"the line is {kind_of(value)}, not a JSON object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise RowFault(f"broken JSON: {name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise RowFault("broken JSON: a key stands twice in one object")
    return row


def _parquet_rows(file: Path, name: str, bad: BadRows) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 1
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
                for value in _values(batch):
                    if isinstance(value, RowFault):
                        bad.add(name, number, str(value))
                    else:
                        yield Row(name, number, value)
                    number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{name} cannot be read as parquet after row {number - 1}: {error}"
        ) from None


def _values(batch: Any) -> list[dict[str, Any] | RowFault]:
    """The rows of a record batch; a fault in the place of one whose text is not UTF-8."""
    try:
        rows: list[dict[str, Any] | RowFault] = batch.to_pylist()
    except UnicodeDecodeError:  # it does not say in which row
        return [_value(batch, place) for place in range(batch.num_rows)]
    return rows


def _value(batch: Any, place: int) -> dict[str, Any] | RowFault:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[place].as_py()
        except UnicodeDecodeError as error:
            return RowFault(f"{name!r} is not UTF-8 text (byte {error.start} of it)")
    return row


def _dataset_rows(name: str, bad: BadRows) -> Iterator[Row]:
    """Rows of a data set that is saved on disk, cached, or on the hub."""
    import datasets

    path, *rest = name.split(":") if not Path(name).exists() else [name]
    split, config = (rest[-1] if rest else "train"), (rest[0] if len(rest) > 1 else None)
    try:
        if (Path(path) / "state.json").exists() or (Path(path) / "dataset_dict.json").exists():
            found = datasets.load_from_disk(path)
            found = found[split] if isinstance(found, datasets.DatasetDict) else found
        else:
            found = datasets.load_dataset(path, config, split=split)
    except (OSError, KeyError, ValueError) as error:
        if Path(path).is_dir() and isinstance(error, FileNotFoundError):
            held = ", ".join(sorted(file.name for file in Path(path).iterdir())) or "nothing"
            raise ValueError(
                f"{path} is a directory without data (it holds {held:.200}): give a file, or a "
                f"directory that datasets.save_to_disk wrote"
            ) from None
        raise ValueError(
            f"{name!r} is neither a file here nor a data set that could be loaded "
            f"({type(error).__name__}: {error}): give a path that exists, or name[:config][:split]"
        ) from None
    except datasets.exceptions.DatasetBuildError as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"the data set {name!r} holds a file that cannot be read or does not fit the others "
            f"({type(cause).__name__}: {str(cause).strip()}): mend that file, or take it out"
        ) from None
    number = 0
    while number < len(found):
        try:
            for value in found.select(range(number, len(found))):
                number += 1
                yield Row(name, number, dict(value))
        except UnicodeDecodeError as error:  # it ends the loop over the rows, and comes before one
            number += 1
            bad.add(name, number, f"a text that is not UTF-8 (byte {error.start} of it)")
