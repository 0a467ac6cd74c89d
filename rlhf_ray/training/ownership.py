"""One process at a time works in a run's directory, on the run that it belongs to."""

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.training.output import undo_replacement

REPLACED_WHOLE = ("sft", "strength", "reward", "policy")  # what a run writes aside
WITHOUT_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK)


@contextmanager
def owned(directory: Path, *, or_else: str | None = None) -> Iterator[None]:
    """Keep every other process out of `directory` until the end, whatever ends this one.

    By a lock on a file beside it, so that the directory itself may be removed meanwhile; the kernel
    gives it back even after kill −9 (NFS: after the lease of a machine that died, some 90 s). A
    file system without locks has none. What a killed process had moved aside, an old run or a
    model of it, is put back first. Raises ValueError where another process holds the lock.
    A link to a directory stands for that. or_else: what to do beside waiting, where the directory
    is not that of a run.
    """
    directory = directory.resolve()
    or_else = or_else or (
        f"stop it (jobs/stop.py --run {directory.name}), or choose another name with --run.name"
    )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process works in {directory}: wait for its end, {or_else}"
            ) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        put_back(directory)
        for name in REPLACED_WHOLE:
            undo_replacement(directory / name)
        yield


def replaced(directory: Path) -> Path:
    """Where the run in `directory` lies from --run.overwrite until its successor has begun."""
    directory = directory.resolve()
    return directory.with_name(f".{directory.name}.replaced")


def put_back(directory: Path) -> None:
    """Undo a --run.overwrite whose run never began: for the owner of `directory` alone.

    A run has begun once it has its config.yaml. Then the old one goes: a part of it may be gone.
    """
    aside = replaced(directory)
    if not aside.is_dir():
        return
    if (directory / "config.yaml").is_file():
        shutil.rmtree(aside, ignore_errors=True)
        return
    shutil.rmtree(directory, ignore_errors=True)  # what the successor had prepared before it began
    aside.rename(directory)
