"""Starting nodes of Ray: on ports that are free, their output in a log that a failure shows."""

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.running.jobs import wait_for

RAY = str(Path(sys.executable).parent / "ray")
# Above the ports of Ray's workers, below those that the kernel gives to whoever connects.
PORTS = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens, drawn so that two sessions seldom meet."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"{count} ports are asked for, and only {len(found)} are free")


def start_node(*options: str, log: Path, **env: str) -> subprocess.Popen[bytes]:
    """`ray start --block OPTIONS`; what it says is added to `log`."""
    with log.open("a") as out:
        return subprocess.Popen(
            [RAY, "start", "--block", *options],
            env=os.environ | env,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def wait_until(what: Callable[[], Any], process: subprocess.Popen, log: Path) -> None:
    """Until `what()` is true, but no longer than the process lives that is to make it true."""

    def said() -> str:
        return log.read_text()[-3000:]

    def true_or_dead() -> Any:
        found = what()
        assert found or process.poll() is None, f"ended with {process.returncode}: {said()}"
        return found

    wait_for(true_or_dead, seconds=120, why=said)


def answers(port: int) -> bool:
    """Whether a Ray on this machine's port says what it has."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        # Only now, for it waits long for one that is not there.
        asked = [RAY, "status", f"--address=127.0.0.1:{port}"]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0
    return False
