"""One process at a time works in a run's directory."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WITHOUT_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK)


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Keep every other process out of `directory` until the end, whatever ends this one.

    By a lock on a file beside it, so that the directory itself may be removed meanwhile; the kernel
    gives it back even after kill −9 (NFS: after the lease of a machine that died, some 90 s). A
    file system without locks has none. Raises ValueError where another process holds it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process works in {directory}: wait for its end, stop it (jobs/stop.py "
                f"--run {directory.name}), or choose another name with --run.name"
            ) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        yield
