"""How far a piece of work raises this process's memory.

For a process of its own: in one that has done other work, freed memory that malloc kept hides a
part.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def peak_bytes(work: Callable[[], object]) -> int:
    """Resident memory at its highest, less what was there before."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def measured(module: str, *numbers: int) -> int:
    """What `module` prints when run with these numbers, freed blocks leaving it at once."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, numbers)],
        cwd=ROOT,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    return int(done.stdout)


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
