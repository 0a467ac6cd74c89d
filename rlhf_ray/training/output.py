"""Directories that are there whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rlhf_ray.files import sync


@contextmanager
def written_aside(out_dir: str | Path) -> Iterator[Path]:
    """A directory beside `out_dir` to write to; it takes its place when the block ends well.

    What was at `out_dir` stays until then, but for the moment between two renames: where a process
    was killed in it, the next that writes, or that owns the run, puts it back. All is on the disk
    before the name changes. One process at a time writes there: what a killed one had begun is
    removed. Raises OSError where a model cannot be written.
    """
    out_dir = Path(out_dir).absolute()
    undo_replacement(out_dir)
    aside = out_dir.with_name(f".{out_dir.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in (aside, *aside.rglob("*")):
            sync(path)
        replace_directory(aside, out_dir)
    except SafetensorError as error:  # what it says of a full disk is no OSError
        raise OSError(
            f"{out_dir} could not be written ({error}): free space or mend the directory, then "
            f"start the same command again, a run that has begun with --resume"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def replace_directory(aside: Path, out_dir: Path) -> None:
    """`aside` takes the place of `out_dir`. The old one steps aside first: a directory cannot be
    renamed over a full one.
    """
    old = _replaced(out_dir)
    shutil.rmtree(old, ignore_errors=True)
    if out_dir.exists():
        out_dir.rename(old)
    aside.rename(out_dir)
    sync(out_dir.parent)
    shutil.rmtree(old, ignore_errors=True)


def undo_replacement(out_dir: Path) -> None:
    """Put back what a process that was killed between two renames had moved out of the way.

    For the owner of the run alone.
    """
    old = _replaced(out_dir)
    if not old.is_dir():
        return
    if out_dir.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(out_dir)


def _replaced(out_dir: Path) -> Path:
    return out_dir.with_name(f".{out_dir.name}.old")
