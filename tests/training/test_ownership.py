"""A run's directory has one owner at a time, and none once its process is gone."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_ray.training.ownership import owned

HOLD = """
import sys, time
from pathlib import Path
from rlhf_ray.training.ownership import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_refused_until_kill_9_ends_the_first(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    refused = pytest.raises(ValueError, match=r"another process works in .*runs/first.*--run first")
    with refused, owned(run):
        pass
    with owned(tmp_path / "runs" / "second"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with owned(run):
        pass
    with owned(run):
        pass


def test_the_directory_may_be_removed_meanwhile(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with owned(run):
        run.rmdir()
        with pytest.raises(ValueError, match="another process"), owned(run):
            pass
