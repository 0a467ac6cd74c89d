"""Submitting as people do: `make submit`, and `ray job …`."""

import subprocess
import sys
from pathlib import Path

from tests.running.jobs import ROOT


def submit(
    server: str, run: Path, *args: str, options: str = ""
) -> subprocess.CompletedProcess[str]:
    """`make submit` for a run's directory; `options` are those of `ray job submit`."""
    flags = " ".join((f"--run.name={run.name}", *args))
    settings = (f"RAY_DASHBOARD={server}", f"RUNS={run.parent}", f"ARGS={flags}")
    return subprocess.run(
        ["make", "--silent", "submit", *settings, f"SUBMIT={options}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def ray_job(server: str, *args: str) -> subprocess.CompletedProcess[str]:
    """`ray job ARGS`."""
    command = [str(Path(sys.executable).parent / "ray"), "job", args[0], "--address", server]
    return subprocess.run([*command, *args[1:]], capture_output=True, text=True, check=False)
