"""A Ray of several nodes on this machine, each a process tree of its own that can be killed."""

import os
import re
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
MEMORY = 200_000_000  # bytes of each node's object store
NODE = "node_"  # in `ray status`, the kind of a node that no autoscaler brought


class Nodes:
    """A head without CPUs, and the nodes that were added."""

    def __init__(self, home: Path, *options: str, **env: str) -> None:
        self._count = 0
        head = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
        self._trees = [self._start(*head, f"--temp-dir={home}", *options, **env)]

    def add(self, cpus: int) -> psutil.Process:
        """One more node, once it is up."""
        made = self._start(f"--address={ADDRESS}", f"--num-cpus={cpus}")
        self._trees.append(made)
        self._count += 1
        wait_for(lambda: self.count(NODE) > self._count, seconds=60, why="no node came up")
        return made

    def count(self, kind: str) -> int:
        """Nodes of a kind that are up. NODE: the head, and those no autoscaler brought."""
        up = self._status().partition("Pending:")[0]
        return sum(map(int, re.findall(rf"^ (\d+) {kind}", up, re.MULTILINE)))

    def end(self) -> None:
        """Kill every node, the head last."""
        for tree in reversed(self._trees):
            kill(tree)

    def _start(self, *options: str, **env: str) -> psutil.Process:
        ray = str(Path(sys.executable).parent / "ray")
        process = subprocess.Popen(
            [ray, "start", "--block", f"--object-store-memory={MEMORY}", *options],
            env=os.environ | env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return psutil.Process(process.pid)

    def _status(self) -> str:
        ray = str(Path(sys.executable).parent / "ray")
        asked = [ray, "status", f"--address={ADDRESS}"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout


def kill(node: psutil.Process) -> None:
    """End a node with everything on it, at once."""
    with suppress(psutil.NoSuchProcess):
        for process in [*node.children(recursive=True), node]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def several_nodes(*options: str, **of_head: str) -> Iterator[Nodes]:
    """Such a Ray for the block, with a token, found through RAY_ADDRESS. options, of_head: what the
    head's `ray start` is given besides, and what stands in its environment."""
    # Short: a socket's path holds 107 characters, and Ray adds 60 of its own.
    with tempfile.TemporaryDirectory(prefix="ray") as home, pytest.MonkeyPatch.context() as env:
        env.setenv("RAY_AUTH_MODE", "token")
        env.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        env.setenv("RAY_ADDRESS", ADDRESS)
        nodes = Nodes(Path(home), *options, **of_head)
        try:
            yield nodes
        finally:
            nodes.end()
