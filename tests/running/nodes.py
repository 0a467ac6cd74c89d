"""A Ray of several nodes on this machine, each a process tree of its own that can be killed."""

import re
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.running.heads import RAY, answers, free_ports, start_node, wait_until

MEMORY = 200_000_000  # bytes of each node's object store
NODE = "node_"  # in `ray status`, the kind of a node that no autoscaler brought


class Nodes:
    """A head without CPUs, and the nodes that were added."""

    def __init__(self, home: Path, port: int, *options: str, **env: str) -> None:
        self._address, self._log, self._count = f"127.0.0.1:{port}", home / "nodes.log", 0
        head = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
        client = next(other for other in free_ports(2) if other != port)
        head += [f"--ray-client-server-port={client}", f"--temp-dir={home}"]
        self._trees: list[psutil.Process] = []
        self._start(lambda: answers(port), *head, *options, **env)

    def add(self, cpus: int, *, waits: bool = True) -> psutil.Process:
        """One more node, once it is up, or once it begins to be."""
        self._count += 1
        here = (f"--address={self._address}", f"--num-cpus={cpus}")
        self._start(lambda: not waits or self.count(NODE) > self._count, *here)
        return self._trees[-1]

    def count(self, kind: str) -> int:
        """Nodes of a kind that are up. NODE: the head, and those no autoscaler brought."""
        up = self._status().partition("Pending:")[0]
        return sum(map(int, re.findall(rf"^ (\d+) {kind}", up, re.MULTILINE)))

    def end(self) -> None:
        """Kill every node, the head last."""
        for tree in reversed(self._trees):
            kill(tree)

    def _start(self, is_up: Callable[[], bool], *options: str, **env: str) -> None:
        size = f"--object-store-memory={MEMORY}"
        started = start_node(size, *options, log=self._log, **env)
        self._trees.append(psutil.Process(started.pid))
        try:
            wait_until(is_up, started, self._log)
        except AssertionError:
            self.end()
            raise

    def _status(self) -> str:
        asked = [RAY, "status", f"--address={self._address}"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout


def kill(node: psutil.Process) -> None:
    """End a node with everything on it, at once."""
    with suppress(psutil.NoSuchProcess):
        for process in [*node.children(recursive=True), node]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def several_nodes(*options: str, port: int | None = None, **of_head: str) -> Iterator[Nodes]:
    """Such a Ray for the block, with a token, found through RAY_ADDRESS. options, of_head: what the
    head's `ray start` is given besides, and what stands in its environment. port: a free one, where
    the options name it."""
    port = port or free_ports(1)[0]
    # Short: a socket's path holds 107 characters, and Ray adds 60 of its own.
    with tempfile.TemporaryDirectory(prefix="ray") as home, pytest.MonkeyPatch.context() as env:
        env.setenv("RAY_AUTH_MODE", "token")
        env.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        env.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        nodes = Nodes(Path(home), port, *options, **of_head)
        try:
            yield nodes
        finally:
            nodes.end()
