"""Running the project's jobs in the test's own process: no second start of Python."""

import runpy
import sys

import pytest

from tests.running.jobs import ROOT


def job_here(name: str, *args: str) -> int:
    """Exit code of jobs/<name>.py."""
    path = ROOT / "jobs" / f"{name}.py"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", [path.name, *args])
        runpy.run_path(str(path), run_name="__main__")
    return ended.value.code
