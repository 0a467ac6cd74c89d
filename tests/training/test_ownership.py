"""A run's directory has one owner at a time, and none once its process is gone."""

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_ray.config import Config, Run
from rlhf_ray.observe.console import Console
from rlhf_ray.training.ownership import owned, replaced
from rlhf_ray.training.strength_run import measure_strength

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


def test_a_link_stands_for_what_it_leads_to(tmp_path: Path) -> None:
    run, link = tmp_path / "run", tmp_path / "latest"
    run.mkdir()
    link.symlink_to(run)
    with owned(run), pytest.raises(ValueError, match="another process"), owned(link):
        pass
    assert replaced(link) == replaced(run)


def lay_aside(run: Path) -> Path:
    """What --run.overwrite does with an old run; where that lies."""
    aside = replaced(run)
    aside.mkdir(parents=True)
    (aside / "config.yaml").write_text("run: {name: old}\n")
    return aside


@pytest.mark.parametrize("prepared", [(), ("data",)], ids=["own data", "demonstration"])
def test_a_run_whose_successor_was_killed_before_it_began_is_put_back(
    tmp_path: Path, prepared: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    aside = lay_aside(run)
    for name in prepared:
        (run / name).mkdir(parents=True)
    with owned(run):
        assert [path.name for path in run.iterdir()] == ["config.yaml"]
        assert not aside.exists()


def test_a_successor_that_had_begun_stays(tmp_path: Path) -> None:
    run = tmp_path / "run"
    aside = lay_aside(run)
    run.mkdir()
    (run / "config.yaml").write_text("run: {name: new}\n")
    with owned(run):
        assert (run / "config.yaml").read_text() == "run: {name: new}\n"
        assert not aside.exists(), "what a kill left of the old one is cleared away"


def test_nothing_is_put_back_while_another_process_overwrites(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with owned(run):
        aside = lay_aside(run)
        with pytest.raises(ValueError, match="another process"), owned(run):
            pass
        assert aside.is_dir() and not run.exists()


def test_strength_is_measured_by_one_process_at_a_time(tmp_path: Path) -> None:
    config = Config(run=Run(root=str(tmp_path), name="one"))
    with owned(config.dir), pytest.raises(ValueError, match="another process works in"):
        measure_strength(config, Console("one", stream=io.StringIO()))
