"""A forked script is as one that Python was started with."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running.jobs import wait_for
from tests.running.scripts import Script, kill_all

SAYS = """
import atexit, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's children ignore it
atexit.register(print, "at exit")
there = "rlhf_ray.training.pipeline" in sys.modules
try:
    print(__name__, sys.argv[1:], os.getcwd(), os.environ.get("WORD"), there, flush=True)
    time.sleep(60 if sys.argv[1] == "wait" else 0)
except KeyboardInterrupt:
    sys.exit(130)
if sys.argv[1] == "raise":
    raise ValueError("a fault of its own")
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def says(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "says.py"
    path.write_text(SAYS)
    yield path
    kill_all()


def ended(script: Script) -> int:
    return script.wait(timeout=60)


def test_status_arguments_place_environment_and_exit_are_its_own(
    says: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    assert ended(Script(says, "0", out=out, cwd=tmp_path)) == 0
    out.unlink()
    monkeypatch.setenv("WORD", "here")  # the server was started without it
    assert ended(Script(says, "7", "--flag", out=out, cwd=tmp_path)) == 7
    assert out.read_text().splitlines() == [
        f"__main__ ['7', '--flag'] {tmp_path} here True",
        "at exit",
    ]


def test_a_fault_is_shown_and_output_is_added(says: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.write_text("before\n")
    assert ended(Script(says, "raise", out=out, cwd=tmp_path)) == 1
    assert out.read_text().startswith("before\n__main__")
    assert "ValueError: a fault of its own" in out.read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_signals_reach_it(says: Path, tmp_path: Path, number: int, code: int):
    out = tmp_path / "out"
    script = Script(says, "wait", out=out, cwd=tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        script.wait(timeout=1.0)
    wait_for(lambda: out.exists() and "__main__" in out.read_text(), why="it did not begin")
    script.send_signal(number)
    assert ended(script) == code
