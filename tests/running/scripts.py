"""Scripts in processes of their own that have imported what all jobs import: 5 s of each start.

A server imports it once and forks. From there on it is as with `python SCRIPT …`: arguments,
directory, environment, output, session, the script as `__main__`, what it does at its exit. But
libraries that read the environment when they are imported have read the server's, and sys.path is
pytest's.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["rlhf_ray.training.pipeline"])


class Script:
    """A script that runs; of subprocess.Popen what the tests use. Its output is added to `out`."""

    def __init__(self, path: Path, *args: str, out: Path, cwd: Path) -> None:
        self._name = path.name
        given = (path, args, out, cwd, dict(os.environ))
        self._process = _SERVER.Process(target=_run, args=given)
        self._process.start()
        _ALL.append(self)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, negative for a signal. subprocess.TimeoutExpired if it takes longer."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._name, timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()


_ALL: list[Script] = []


def kill_all() -> None:
    """Those that still run, because a test failed."""
    for script in _ALL:
        script.kill()
    _ALL.clear()


def _run(
    path: Path, args: tuple[str, ...], out: Path, cwd: Path, environment: Mapping[str, str]
) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    with out.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = [str(path), *args]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a process of multiprocessing ends without them
