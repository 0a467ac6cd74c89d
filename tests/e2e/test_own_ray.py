"""A run that starts a Ray for itself, as `make ppo` does, ended by force: nothing stays behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.running.jobs import ROOT, TINY, fingerprint, succeed, wait_for

Make = Callable[[str], tuple[Path, tuple[str, ...]]]


def to_all(driver: subprocess.Popen) -> None:
    """Ctrl-C at a terminal reaches every process in the foreground."""
    os.killpg(driver.pid, signal.SIGINT)


def terminate(driver: subprocess.Popen) -> None:
    driver.send_signal(signal.SIGTERM)


def kill(driver: subprocess.Popen) -> None:
    driver.send_signal(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code"), [(to_all, 130), (terminate, 130), (kill, -9)])
def test_no_process_outlives_it_and_it_resumes(
    undisturbed: str,
    new_run: Make,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[subprocess.Popen], None],
    code: int,
):
    run, place = new_run("alone")
    flags = (*place, *TINY, "--ppo.iterations=24")
    with monkeypatch.context() as here, (run / "log").open("wb") as log:
        here.setenv("RAY_ADDRESS", "local")
        driver = subprocess.Popen(
            [sys.executable, ROOT / "jobs/ppo.py", *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            wait_for(lambda: list(run.glob("checkpoints/step-*")), why=(run / "log").read_text)
            made = psutil.Process(driver.pid).children(recursive=True)
            names = " ".join(process.name() for process in made)
            assert "gcs_server" in names and "raylet" in names, names
            end(driver)
            assert driver.wait(timeout=60) == code
        finally:
            driver.kill()
    # After kill -9 two of Ray's own processes try for a minute to tell of it first.
    _, alive = psutil.wait_procs(made, timeout=120)
    assert not alive
    succeed("ppo", *place, "--resume")
    assert fingerprint(run) == undisturbed
