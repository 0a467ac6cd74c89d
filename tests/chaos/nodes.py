"""A Ray of several nodes on this machine, each a process tree of its own that can be killed."""

import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.running.jobs import wait_for

PORT = 26389
ADDRESS = f"127.0.0.1:{PORT}"
STORE = "--object-store-memory=200000000"


class Nodes:
    """A head without CPUs, and the nodes that were added."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._count = 0
        head = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
        self._trees = [self._start(*head, f"--temp-dir={home}")]

    def add(self, cpus: int) -> psutil.Process:
        """One more node, once it is up."""
        made = self._start(f"--address={ADDRESS}", f"--num-cpus={cpus}")
        self._trees.append(made)
        self._count += 1
        wait_for(lambda: self._alive() > self._count, seconds=60, why="no node came up")
        return made

    def end(self) -> None:
        """Kill every node, the head last."""
        for tree in reversed(self._trees):
            kill(tree)

    def _start(self, *options: str) -> psutil.Process:
        ray = str(Path(sys.executable).parent / "ray")
        process = subprocess.Popen(
            [ray, "start", "--block", STORE, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return psutil.Process(process.pid)

    def status(self) -> str:
        """What `ray status` says of nodes and demands."""
        ray = str(Path(sys.executable).parent / "ray")
        asked = [ray, "status", f"--address={ADDRESS}"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout

    def _alive(self) -> int:
        """Nodes that Ray counts as active, the head among them."""
        return self.status().partition("Pending:")[0].count(" node_")


def kill(node: psutil.Process) -> None:
    """End a node with everything on it, at once."""
    with suppress(psutil.NoSuchProcess):
        for process in [*node.children(recursive=True), node]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def several_nodes() -> Iterator[Nodes]:
    """Such a Ray for the block, with a token, found through RAY_ADDRESS."""
    # Short: a socket's path holds 107 characters, and Ray adds 60 of its own.
    with tempfile.TemporaryDirectory(prefix="ray") as home, pytest.MonkeyPatch.context() as env:
        env.setenv("RAY_AUTH_MODE", "token")
        env.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        env.setenv("RAY_ADDRESS", ADDRESS)
        nodes = Nodes(Path(home))
        try:
            yield nodes
        finally:
            nodes.end()
