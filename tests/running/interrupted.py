"""A run that a user stops with Ctrl-C, whose newest checkpoint is damaged then, resumed."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.running.jobs import actor_processes, start, succeed, wait_for


@dataclass(frozen=True)
class Interrupted:
    """What was seen of it. checkpoints: at the time, oldest first; the last is damaged since."""

    directory: Path
    code: int
    said: str
    checkpoints: list[Path]
    said_when_resumed: str


def interrupt(directory: Path, flags: Sequence[str]) -> Interrupted:
    """Start `jobs/ppo.py FLAGS` on the run in `directory`, stop it half-way, resume it."""
    place = (f"--run.root={directory.parent}", f"--run.name={directory.name}")
    log = directory / "log"

    def checkpoints() -> list[Path]:
        return sorted(directory.glob("checkpoints/step-*"))

    driver = start("ppo", *place, *flags, log=log)
    try:
        wait_for(lambda: len(checkpoints()) > 1, why=log.read_text)
        driver.send_signal(signal.SIGINT)
        code = driver.wait(timeout=60)
    finally:
        driver.kill()
    wait_for(lambda: not actor_processes(), seconds=20, why="a process was left behind")
    there = checkpoints()
    (there[-1] / "meta.json").write_text("{}")
    said = succeed("ppo", *place, "--resume")
    return Interrupted(directory, code, log.read_text(), there, said)
