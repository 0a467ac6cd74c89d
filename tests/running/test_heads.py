"""A node that does not come up is said with its own words, and at once."""

import socket
import subprocess
from pathlib import Path

import pytest

from tests.running import heads
from tests.running.heads import free_ports, wait_until


def test_a_port_that_is_taken_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = sorted(free_ports(2))
    monkeypatch.setattr(heads, "PORTS", (first, second))
    with socket.socket() as taken:
        taken.bind(("", first))
        assert free_ports(1) == [second]
        with pytest.raises(AssertionError, match="2 ports are asked for, and only 1 are free"):
            free_ports(2)


def test_a_process_that_ends_is_not_awaited(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as out:
        node = subprocess.Popen(["sh", "-c", "echo the port is taken; exit 3"], stdout=out)
    with pytest.raises(AssertionError, match="ended with 3: the port is taken"):
        wait_until(lambda: False, node, log)
