"""Running the project's jobs as a user does, but for the time that their imports take."""

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.running.scripts import Script

ROOT = Path(__file__).resolve().parents[2]

# Small enough to start and finish in seconds; float32, so that runs can be compared bit for bit.
TINY = (
    *("--model.hidden=64", "--model.layers=2", "--model.vocab=700", "--model.dtype=float32"),
    *("--sft.epochs=0.2", "--sft.batch-tokens=8192", "--rm.epochs=0.2", "--rm.batch-lists=32"),
    *("--ppo.prompts=16", "--ppo.epochs=2", "--ppo.minibatches=2", "--rollout.shard-prompts=4"),
    *("--rollout.max-response-tokens=16", "--rollout.kv-cache-mb=64"),
    *("--data.max-prompt-tokens=48", "--evaluate.prompts=8", "--evaluate.every=1000"),
    "--checkpoint.every=1",
)


STEPS = 24  # iterations of a tiny run, about 10 s: time enough to strike it


@dataclass
class Finished:
    """How a job ended. out: stdout and stderr."""

    code: int
    out: str


def job(name: str, *args: str, cwd: Path = ROOT, timeout: float = 240) -> Finished:
    """Run jobs/<name>.py to its end."""
    with tempfile.NamedTemporaryFile() as out:
        script = Script(_path(name), *args, out=Path(out.name), cwd=cwd)
        try:
            code = script.wait(timeout)
        finally:
            script.kill()
        return Finished(code, out.read().decode())


def start(name: str, *args: str, log: Path) -> Script:
    """Start jobs/<name>.py in a session of its own, its output added to `log`."""
    return Script(_path(name), *args, out=log, cwd=ROOT)


def _path(job: str) -> Path:
    return ROOT / "jobs" / f"{job}.py"


def succeed(name: str, *args: str) -> str:
    """Run a job that must end well; its output."""
    done = job(name, *args)
    assert done.code == 0, done.out[-4000:]
    return done.out


def wait_for(
    what: Callable[[], Any], *, seconds: float = 150, why: str | Callable[[], str] = ""
) -> Any:
    """What `what()` returns once it is true. why: what to say when it never is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s in vain: {why() if callable(why) else why}")


def summary(run: Path) -> dict[str, Any]:
    """A run's summary.json."""
    return json.loads((run / "summary.json").read_text())


def fingerprint(run: Path) -> str:
    """Of a run's final weights."""
    return hashlib.sha256((run / "policy" / "model.safetensors").read_bytes()).hexdigest()


def rows(run: Path, phase: str = "ppo") -> list[dict[str, Any]]:
    """A run's metrics of one phase."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["phase"] == phase]


def actor_processes(role: str = "") -> list[psutil.Process]:
    """Living processes of the actors of a role, or of all: Ray titles them `ray::<class>…`.

    Only those of the Ray at RAY_ADDRESS, the tests' own, on which one run is alive at a time.
    """
    of_nodes = "--gcs-address=", ":" + os.environ["RAY_ADDRESS"].rpartition(":")[2]
    there = _all_processes()
    # A worker's own arguments are its title, and the title has been written over its environment.
    nodes = {
        process.pid
        for process, info in there
        for argument in info["cmdline"] or ()
        if argument.startswith(of_nodes[0]) and argument.endswith(of_nodes[1])
    }
    title = re.compile(rf"ray::{role.title()}\w*Actor")
    return [
        process
        for process, info in there
        if info["ppid"] in nodes
        and title.match(" ".join(info["cmdline"] or ()))
        and info["status"] != psutil.STATUS_ZOMBIE
    ]


def _all_processes() -> list[tuple[psutil.Process, dict[str, Any]]]:
    """Not by `process_iter`: its processes are shared by all threads that call it, with others."""
    found = []
    for pid in psutil.pids():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found.append((process, process.as_dict(["cmdline", "ppid", "status"])))
    return found
