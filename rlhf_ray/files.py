"""Files that are there whole or not at all, whatever ends the process that writes them."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of a file's content: its size in bytes, and its xxh3-64."""

    bytes: int
    xxh3: str


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file beside `path` to write to; it takes its place when the block ends well.

    What was at `path` stays until then. What takes its place is on the disk before: after a power
    cut the one or the other is there, whole. The directory is made where it is missing. A link
    stays one, to a new file. A device or a pipe is written to directly.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    if path.is_symlink():  # as /dev/stdout is, where that goes to a file
        path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """`text` as UTF-8."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """`value` as indented JSON; NaN is refused, for it is not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Return when a file, or the list of a directory's names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fingerprint(path: Path) -> Fingerprint:
    """Of the file at `path`, which is read to its end."""
    digest, size = xxhash.xxh3_64(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Fingerprint(size, digest.hexdigest())
