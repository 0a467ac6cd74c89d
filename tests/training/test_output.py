"""Directories that take the place of others, and a process that is killed meanwhile."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlhf_ray.training.output import written_aside
from rlhf_ray.training.ownership import owned
from tests.running.disks import small_disk
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


DIES_BETWEEN = """
import os, signal, sys
from pathlib import Path
from rlhf_ray.training.output import written_aside

rename = Path.rename

def rename_and_die(path, target):
    rename(path, target)
    os.kill(os.getpid(), signal.SIGKILL)

with written_aside(sys.argv[1]) as aside:
    (aside / "weights").write_text("new")
    Path.rename = rename_and_die
"""


@pytest.fixture
def killed_between(tmp_path: Path) -> Path:
    """`run/sft`, whose old model had stepped aside when its process was killed."""
    out = tmp_path / "run" / "sft"
    with written_aside(out) as aside:
        (aside / "weights").write_text("old")
    done = subprocess.run([sys.executable, "-c", DIES_BETWEEN, str(out)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL and not out.exists()
    return out


def test_the_next_owner_of_the_run_finds_the_old_one(killed_between: Path) -> None:
    with owned(killed_between.parent):
        assert (killed_between / "weights").read_text() == "old"


def test_the_old_one_outlives_a_second_write_that_fails(killed_between: Path) -> None:
    with pytest.raises(OSError, match="disk full"), written_aside(killed_between):
        raise OSError("disk full")
    assert [path.name for path in killed_between.parent.iterdir()] == ["sft"]
    assert (killed_between / "weights").read_text() == "old"


def test_an_old_one_whose_place_is_taken_is_removed(tmp_path: Path) -> None:
    for name in ("sft", ".sft.old", "mine", ".mine.old"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "weights").write_text(name)
    with owned(tmp_path / "run"):
        there = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert there == [".mine.old", "mine", "sft"], "what is not ours stays as it is"
    assert (tmp_path / "run/sft/weights").read_text() == "sft"


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    """safetensors, by which models are saved, raises what is no OSError."""
    with small_disk(tmp_path / "small", "256k") as place:
        full = pytest.raises(OSError, match=r"sft could not be written .*No space left.*--resume")
        with full, written_aside(place / "sft") as aside:
            save_file({"weights": torch.zeros(500_000)}, aside / "model.safetensors")
        assert list(place.iterdir()) == []
