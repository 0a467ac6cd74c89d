"""Directories that take the place of others, and a process that is killed meanwhile."""

import subprocess
import sys
from pathlib import Path

from rlhf_ray.training.output import written_aside
from tests.running.jobs import ROOT

WRITES = """
import sys, time
from rlhf_ray.training.output import written_aside

with written_aside(sys.argv[1]) as aside:
    (aside / "weights").write_text("half")
    print("begun", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_goes_with_the_next_that_writes(tmp_path: Path) -> None:
    out = tmp_path / "policy"
    with written_aside(out) as aside:
        (aside / "weights").write_text("old")
    command = [sys.executable, "-c", WRITES, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "begun\n"
        writer.kill()
    assert (out / "weights").read_text() == "old"
    with written_aside(out) as aside:
        assert list(aside.iterdir()) == []
        (aside / "weights").write_text("new")
    assert (out / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
