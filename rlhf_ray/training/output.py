"""Directories that are there whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.files import sync


@contextmanager
def written_aside(out_dir: str | Path) -> Iterator[Path]:
    """A directory beside `out_dir` to write to; it takes its place when the block ends well.

    What was at `out_dir` stays until then, but for the moment between two renames. All is on the
    disk before the name changes. One process at a time writes there: what a killed one left beside
    it is removed.
    """
    out_dir = Path(out_dir).absolute()
    aside = out_dir.with_name(f".{out_dir.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in (aside, *aside.rglob("*")):
            sync(path)
        replace_directory(aside, out_dir)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def replace_directory(aside: Path, out_dir: Path) -> None:
    """`aside` takes the place of `out_dir`. The old one steps aside first: a directory cannot be
    renamed over a full one.
    """
    old = out_dir.with_name(f".{out_dir.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out_dir.exists():
        out_dir.rename(old)
    aside.rename(out_dir)
    sync(out_dir.parent)
    shutil.rmtree(old, ignore_errors=True)
