"""Rows of a text, JSON-lines or parquet file or of a `datasets` data set, each with its place.

A fault belongs to one row: `BadRows` decides whether it ends the run or is counted. What concerns
the whole file (missing, unreadable, unknown kind) is a ValueError at once.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from rlhf_ray.data.escapes import unescape

LINE_SUFFIXES = {".txt", ".tsv"}
JSON_SUFFIXES = {".jsonl", ".json", ".ndjson"}
SUFFIXES = LINE_SUFFIXES | JSON_SUFFIXES | {".parquet"}
BATCH_ROWS = 1024

OnBadRow = Literal["fail", "skip"]


class RowFault(ValueError):
    """What is wrong with one row; whoever reads rows adds the file and the line."""


@dataclass(slots=True)
class BadRows:
    """Counts faults under `skip`; under `fail` the first raises ValueError("file:line: fault")."""

    on_bad_row: OnBadRow = "fail"
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, source: str, line: int, fault: str) -> None:
        """Take note of the fault of one row."""
        place = f"{source}:{line}: {fault}"
        if self.on_bad_row == "fail":
            raise ValueError(f"{place}. Mend the row, or skip such rows: --data.on-bad-row skip")
        self.count += 1
        if len(self.examples) < 5:
            self.examples.append(place)


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


def read_rows(path: str | Path, bad: BadRows) -> Iterator[Row]:
    """Rows of `path`: a file, a directory of `datasets.save_to_disk`, or a data set's name.

    A name may carry its configuration and split: `owner/name:config:split` (default split: train).
    Empty lines are no rows. Raises ValueError where nothing can be read.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if file.is_file():
        if suffix not in SUFFIXES:
            raise ValueError(
                f"{path} ends in {suffix or 'no suffix'}; known are {sorted(SUFFIXES)}"
            )
        if suffix in LINE_SUFFIXES:
            return _line_rows(file, bad)
        return _json_rows(file, bad) if suffix in JSON_SUFFIXES else _parquet_rows(file, bad)
    on_disk = Path(str(path).partition(":")[0]).is_dir()
    if not on_disk and (suffix in SUFFIXES or file.is_absolute()):
        raise ValueError(f"there is no file {path}: check the path (now in {Path.cwd()})")
    return _dataset_rows(str(path), bad)


def read_lines(file: Path, bad: BadRows) -> Iterator[tuple[int, str]]:
    r"""Numbered lines that are not empty. Only \n and \r\n end one; a byte-order mark goes."""
    for number, raw in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        raw = raw.removesuffix(b"\r")
        if not raw:
            continue
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            bad.add(str(file), number, f"not UTF-8 text (byte {error.start} of the line)")


def text_of(value: Any, what: str) -> str:
    """`value` as a text that can be encoded; RowFault otherwise. It may be empty."""
    if not isinstance(value, str):
        raise RowFault(f"{what} is {_kind(value)}, not a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowFault(f"{what} holds half of a surrogate pair, which is no character") from None
    return value


def filled_text_of(value: Any, what: str) -> str:
    """`text_of`, and not blank."""
    if not (text := text_of(value, what)).strip():
        raise RowFault(f"{what} is empty")
    return text


def column_of(row: dict[str, Any], name: str) -> Any:
    """`row[name]`; RowFault names the columns there are."""
    if name not in row:
        raise RowFault(f"no column {name!r}; the row has {sorted(map(str, row))}")
    return row[name]


def _line_rows(file: Path, bad: BadRows) -> Iterator[Row]:
    for number, line in read_lines(file, bad):
        yield Row(str(file), number, line)


def _json_rows(file: Path, bad: BadRows) -> Iterator[Row]:
    for number, line in read_lines(file, bad):
        try:
            value = _parse_json(line)
        except RowFault as fault:
            bad.add(str(file), number, str(fault))
        else:
            yield Row(str(file), number, value)


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
        raise RowFault(f"the line is {_kind(value)}, not a JSON object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise RowFault(f"broken JSON: {name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise RowFault("broken JSON: a key stands twice in one object")
    return row


def _parquet_rows(file: Path, bad: BadRows) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 1
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
                for value in _values(batch):
                    if isinstance(value, RowFault):
                        bad.add(str(file), number, str(value))
                    else:
                        yield Row(str(file), number, value)
                    number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{file} cannot be read as parquet after row {number - 1}: {error}"
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


def _kind(value: Any) -> str:
    names = {
        type(None): "nothing (null)",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(
        type(value),
        {"str": "a text", "list": "a list", "dict": "an object"}.get(
            type(value).__name__, type(value).__name__
        ),
    )
