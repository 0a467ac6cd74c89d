"""One Ray and one tiny SFT and reward model for all end-to-end tests."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.running.heads import answers, free_ports, start_node, wait_until
from tests.running.interrupted import Interrupted, interrupt
from tests.running.jobs import ROOT, STEPS, TINY, fingerprint, succeed, wait_for
from tests.running.scripts import kill_all


@dataclass(frozen=True)
class Ports:
    """Those of the tests' Ray."""

    gcs: int
    dashboard: int
    metrics: int
    agent: int
    client: int


@pytest.fixture(scope="session")
def ports() -> Ports:
    """Free ones: another Ray on this machine may have the usual ones."""
    return Ports(*free_ports(5))


@pytest.fixture(scope="session")
def ray_home() -> Iterator[Path]:
    """Ray's own directory. Short: a socket's path holds 107 characters, and Ray adds 60."""
    # Its processes may still write as they end.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as home:
        yield Path(home)


@pytest.fixture(scope="session")
def ray_address(ray_home: Path, ports: Ports) -> Iterator[str]:
    """A Ray head of its own, with a token, ended with the session; found through RAY_ADDRESS."""
    log = ray_home / "head.log"
    options = [f"--port={ports.gcs}", "--num-cpus=2", "--dashboard-host=127.0.0.1"]
    options += [f"--dashboard-port={ports.dashboard}", f"--metrics-export-port={ports.metrics}"]
    options += [f"--dashboard-agent-listen-port={ports.agent}"]
    options += [f"--ray-client-server-port={ports.client}", f"--temp-dir={ray_home}"]
    places = {
        # A job's `python` is looked up in the PATH that Ray was started with.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_metrics_report_interval_ms": "1000",
    }
    with pytest.MonkeyPatch.context() as env:
        env.setenv("RAY_AUTH_MODE", "token")
        env.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        head = start_node("--head", *options, log=log, **places)
        try:
            wait_until(lambda: answers(ports.gcs), head, log)
            env.setenv("RAY_ADDRESS", f"127.0.0.1:{ports.gcs}")
            yield f"127.0.0.1:{ports.gcs}"
        finally:
            head.terminate()
            head.wait(timeout=30)


@pytest.fixture(scope="session")
def job_server(ray_address: str, ports: Ports) -> str:
    """Where jobs are submitted to that Ray; the dashboard is up a few seconds after it."""
    address = f"http://127.0.0.1:{ports.dashboard}"

    def is_up() -> bool:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return True
        except OSError:
            return False

    wait_for(is_up, seconds=60, why="no dashboard came up")
    return address


@pytest.fixture(scope="session")
def metrics_page(ray_address: str, ports: Ports) -> str:
    """What Prometheus reads of that Ray's node."""
    return f"http://127.0.0.1:{ports.metrics}/metrics"


@pytest.fixture(scope="session")
def demonstration(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demonstration from nothing, tiny: its directory, and what it printed.

    Started as a user starts it, by a Python that has imported nothing yet.
    """
    root = tmp_path_factory.mktemp("demonstration")
    flags = (f"--run.root={root}", *TINY, "--ppo.iterations=3", "--evaluate.every=2")
    command = [sys.executable, str(ROOT / "jobs" / "ppo.py"), *flags]
    done = subprocess.run(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return root / "demo", done.stdout


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
    kill_all()


@pytest.fixture(scope="session")
def interrupted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """A tiny run stopped by Ctrl-C and resumed: as `undisturbed`, which test_exact.py holds it to.

    The short form compares with its weights: a run of its own that nothing happens to takes as long
    as any.
    """
    directory = tmp_path_factory.mktemp("interrupted") / "run"
    directory.mkdir()
    for part in ("sft", "reward"):
        (directory / part).symlink_to(base / part)
    return interrupt(directory, (*TINY, f"--ppo.iterations={STEPS}"))


@pytest.fixture(scope="session")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fingerprint of the final weights of a tiny run that nothing happens to."""
    flags = (*TINY, f"--ppo.iterations={STEPS}")
    return undisturbed_run(base, tmp_path_factory.mktemp("undisturbed"), flags)


def undisturbed_run(base: Path, root: Path, flags: Sequence[str]) -> str:
    """Fingerprint of the final weights of a run in `root` from the models of `base`."""
    (root / "whole").mkdir()
    for part in ("sft", "reward"):
        (root / "whole" / part).symlink_to(base / part)
    succeed("ppo", f"--run.root={root}", "--run.name=whole", *flags)
    return fingerprint(root / "whole")
