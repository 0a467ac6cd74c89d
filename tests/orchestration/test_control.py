"""Asking a run's control actor by the run's name: what cannot be answered says why."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray.exceptions import ActorUnavailableError

from rlhf_ray.actors import control
from rlhf_ray.actors.control import ask, create_control
from tests.running.jobs import ROOT


@pytest.fixture(scope="module")
def alive(joined: None) -> Iterator[str]:
    """Name of a run whose control actor lives."""
    actor = create_control("alive", 1)
    ray.get(actor.exchange.remote(control.Report(wanted=1)))
    yield "alive"
    ray.kill(actor)


def test_a_second_run_of_a_name_is_refused(alive: str) -> None:
    with pytest.raises(ValueError, match="a run named 'alive' is alive on this cluster: stop it"):
        create_control(alive, 1)


def test_it_is_refused_before_anything_is_trained(alive: str, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "jobs/ppo.py", f"--run.root={tmp_path}"]
    command += [f"--run.name={alive}", "--model.layers=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout
    assert "a run named 'alive' is alive on this cluster: stop it" in done.stderr
    assert not (tmp_path / alive / "metrics.jsonl").exists()


def test_a_run_that_is_not_there_is_named_beside_those_that_are(alive: str) -> None:
    with pytest.raises(ValueError, match=r"no run named 'absent' is alive .*; alive: alive$"):
        ask("absent", "status")


def test_what_the_run_refuses_is_said_as_it_says_it(alive: str) -> None:
    with pytest.raises(ValueError, match=r"^-4 generators are asked for where there are 1; a run"):
        ask(alive, "scale", -5, relative=True)


def test_a_run_that_ends_while_it_is_asked(joined: None, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = create_control("brief", 1)
    monkeypatch.setattr(control, "find_control", lambda run: actor)
    ray.kill(actor)
    with pytest.raises(ValueError, match="the run 'brief' has just ended"):
        ask("brief", "status")


def test_a_control_actor_that_is_started_anew_is_not_the_end_of_its_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise ActorUnavailableError("it is restarting", None)

    status = SimpleNamespace(remote=lambda: None)
    monkeypatch.setattr(control, "find_control", lambda run: SimpleNamespace(status=status))
    monkeypatch.setattr(ray, "get", unavailable)
    with pytest.raises(ValueError, match=r"'live' is being started anew.* in a few seconds"):
        ask("live", "status")


def test_a_silent_control_actor_is_not_awaited_for_ever(
    alive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, standing = ask(alive, "status")
    process = psutil.Process(standing.pid)
    monkeypatch.setattr(control, "ANSWER_TIMEOUT", 0.2)
    process.suspend()
    try:
        with pytest.raises(ValueError, match="did not answer `status` in 0 s: look whether its"):
            ask(alive, "status")
    finally:
        process.resume()
