"""One Ray and one tiny SFT and reward model for all end-to-end tests."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.running.jobs import STEPS, TINY, fingerprint, processes_with, succeed, wait_for

# All ports are the tests' own: another Ray on this machine has the usual ones.
PORT, DASHBOARD, METRICS, AGENT, CLIENT = range(26379, 26384)


@pytest.fixture(scope="session")
def ray_home() -> Iterator[Path]:
    """Ray's own directory. Short: a socket's path holds 107 characters, and Ray adds 60."""
    with tempfile.TemporaryDirectory(prefix="ray") as home:
        yield Path(home)


@pytest.fixture(scope="session")
def ray_address(ray_home: Path) -> Iterator[str]:
    """A Ray head of its own, with a token, ended with the session; found through RAY_ADDRESS."""
    ray = str(Path(sys.executable).parent / "ray")
    with pytest.MonkeyPatch.context() as env:
        env.setenv("RAY_AUTH_MODE", "token")
        env.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        options = [f"--port={PORT}", "--num-cpus=2", "--dashboard-host=127.0.0.1"]
        options += [f"--dashboard-port={DASHBOARD}", f"--metrics-export-port={METRICS}"]
        options += [f"--dashboard-agent-listen-port={AGENT}", f"--ray-client-server-port={CLIENT}"]
        head = subprocess.Popen(
            [ray, "start", "--head", "--block", *options, f"--temp-dir={ray_home}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A job's `python` is looked up in the PATH that Ray was started with.
            env=os.environ
            | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            | {"RAY_metrics_report_interval_ms": "1000"},
        )
        address = f"127.0.0.1:{PORT}"
        try:
            _wait_until_up(ray, address)
            env.setenv("RAY_ADDRESS", address)
            yield address
        finally:
            head.terminate()
            head.wait(timeout=30)


def _wait_until_up(ray: str, address: str) -> None:
    for _ in range(30):
        asked = [ray, "status", f"--address={address}"]
        if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
            return
    raise AssertionError(f"no Ray came up at {address}")


@pytest.fixture(scope="session")
def job_server(ray_address: str) -> str:
    """Where jobs are submitted to that Ray; the dashboard is up a few seconds after it."""
    address = f"http://127.0.0.1:{DASHBOARD}"

    def answers() -> bool:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return True
        except OSError:
            return False

    wait_for(answers, seconds=60, why="no dashboard came up")
    return address


@pytest.fixture(scope="session")
def metrics_page(ray_address: str) -> str:
    """What Prometheus reads of that Ray's node."""
    return f"http://127.0.0.1:{METRICS}/metrics"


@pytest.fixture(scope="session")
def demonstration(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demonstration from nothing, tiny: its directory, and what it printed."""
    root = tmp_path_factory.mktemp("demonstration")
    out = succeed("ppo", f"--run.root={root}", *TINY, "--ppo.iterations=3", "--evaluate.every=2")
    return root / "demo", out


@pytest.fixture(scope="session")
def base(demonstration: tuple[Path, str]) -> Path:
    """A run's directory that holds sft/ and reward/ of the demonstration, tiny."""
    return demonstration[0]


@pytest.fixture
def new_run(base: Path, tmp_path: Path) -> Iterator[Callable[[str], tuple[Path, tuple[str, ...]]]]:
    """Makes a run that starts from `base`: its directory, and the flags that name it.

    A run that is still going on when its test has ended, because the test failed, is killed.
    """

    def make(name: str) -> tuple[Path, tuple[str, ...]]:
        directory = tmp_path / name
        directory.mkdir()
        for part in ("sft", "reward"):
            shutil.copytree(base / part, directory / part)
        return directory, (root, f"--run.name={name}")

    root = f"--run.root={tmp_path}"
    yield make
    for process in processes_with(root):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            process.kill()


@pytest.fixture(scope="session")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fingerprint of the final weights of a tiny run that nothing happens to."""
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "whole").mkdir()
    for part in ("sft", "reward"):
        (root / "whole" / part).symlink_to(base / part)
    place = (f"--run.root={root}", "--run.name=whole")
    succeed("ppo", *place, *TINY, f"--ppo.iterations={STEPS}")
    return fingerprint(root / "whole")
