"""Directories that are there whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_aside(out_dir: str | Path) -> Iterator[Path]:
    """A directory beside `out_dir` to write to; it takes its place when the block ends well.

    What was at `out_dir` stays until then. Files are flushed to disk before the name changes.
    """
    out_dir = Path(out_dir).absolute()
    aside = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        _flush(aside)
        _replace(aside, out_dir)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """`value` as indented JSON; NaN is refused, for it is not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _flush(directory: Path) -> None:
    for file in directory.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def _replace(aside: Path, out_dir: Path) -> None:
    """A directory cannot be renamed over a full one: the old one steps aside first."""
    old = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out_dir.exists():
        out_dir.rename(old)
    aside.rename(out_dir)
    shutil.rmtree(old, ignore_errors=True)
