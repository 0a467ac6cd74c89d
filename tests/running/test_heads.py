"""A node that does not come up is said with its own words, and at once."""

import subprocess
from pathlib import Path

import pytest

from tests.running.heads import free_ports, wait_until


def test_free_ports_differ() -> None:
    assert len(set(free_ports(50))) == 50


def test_a_process_that_ends_is_not_awaited(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as out:
        node = subprocess.Popen(["sh", "-c", "echo the port is taken; exit 3"], stdout=out)
    with pytest.raises(AssertionError, match="ended with 3: the port is taken"):
        wait_until(lambda: False, node, log)
