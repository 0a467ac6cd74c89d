"""What is wrong with a row, who counts it, and what a source holds without its bad rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlhf_ray.config import OnBadRow

EXAMPLES = 5
ON_BAD_ROW = "--data.on-bad-row"
KINDS = {
    type(None): "nothing (null)",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}

Item = TypeVar("Item")


class RowFault(ValueError):
    """What is wrong with one row; whoever reads rows adds the file and the line."""


@dataclass(slots=True)
class BadRows:
    """Counts faults under `skip`; under `fail` the first raises ValueError("file:line: fault").

    flag: with what the user chooses between the two; "" where there is no choice.
    """

    on_bad_row: OnBadRow = "fail"
    flag: str = ON_BAD_ROW
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, source: str, line: int, fault: str, *, fix: str = "") -> None:
        """Take note of the fault of one row. fix: what mends it where the row alone cannot be."""
        place = f"{source}:{line}: {fault}"
        if self.on_bad_row == "fail":
            skip = f", or skip such rows: {self.flag} skip" if self.flag else ""
            raise ValueError(f"{place}: {fix}" if fix else f"{place}. Mend the row{skip}")
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{place}: {fix}" if fix else place)

    def include(self, other: "BadRows") -> None:
        """Count those of another file as well."""
        self.count += other.count
        self.examples += other.examples[: EXAMPLES - len(self.examples)]

    @property
    def first(self) -> str | None:
        """The first of them: file, line and fault."""
        return self.examples[0] if self.examples else None

    def none_left(self, path: str | Path, what: str, *, fix: str = "") -> ValueError:
        """The error of a source that holds no `what`; these are the bad rows of it alone.

        fix: what mends them.
        """
        mend = f"; {fix}" if fix else ""
        if not self.count:
            return ValueError(f"{path} holds no {what}: it is empty; give one with at least one")
        if self.count == 1:
            return ValueError(f"{path} holds no {what}: its one row is bad: {self.first}{mend}")
        rows = f"all {self.count} rows are bad"
        return ValueError(f"{path} holds no {what}: {rows}, the first: {self.first}{mend}")


@dataclass(frozen=True, slots=True)
class Loaded(Sequence[Item], Generic[Item]):
    """What a source holds; how many of its rows were bad, and the first: file, line and fault."""

    items: tuple[Item, ...]
    bad_rows: int = 0
    first_bad: str | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]


def skipped(count: int, first: str | None) -> str:
    """A line on bad rows that were skipped."""
    rows = "1 bad row" if count == 1 else f"{count} bad rows"
    return f"{rows} skipped" + (f", the first: {first}" if first else "")


def text_of(value: Any, what: str) -> str:
    """`value` as a text that can be encoded; RowFault otherwise. It may be empty."""
    if not isinstance(value, str):
        raise RowFault(f"{what} is {kind_of(value)}, not a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowFault(f"{what} holds half of a surrogate pair, which is no character") from None
    if "\0" in value:
        raise RowFault(
            f"{what} holds a NUL character (at {value.index(chr(0))}), which no text has"
        )
    return value


def filled_text_of(value: Any, what: str) -> str:
    """`text_of`, and not blank."""
    if not (text := text_of(value, what)).strip():
        raise RowFault(f"{what} is empty")
    return text


def column_of(row: Mapping[str, Any], name: str) -> Any:
    """`row[name]`; RowFault names the columns there are."""
    if name not in row:
        raise RowFault(f"no column {name!r}; the row has {sorted(map(str, row))}")
    return row[name]


def kind_of(value: Any) -> str:
    """What `value` is called in a message."""
    return KINDS.get(type(value), type(value).__name__)
