"""jobs/ppo.py as a retry calls it: whether it starts, goes on or has nothing left to do."""

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rlhf_ray.config import PPO, Config, Data, Run
from rlhf_ray.training import pipeline
from rlhf_ray.training.ownership import owned, replaced
from tests.running.here import job_here
from tests.running.jobs import TINY, rows

Make = Callable[[str], tuple[Path, tuple[str, ...]]]
BEGAN_WITH = Config(run=Run(name="first"), ppo=PPO(iterations=7, lam=0.9))


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The job's own for SIGINT and SIGTERM end with it."""
    before = {asked: signal.getsignal(asked) for asked in (signal.SIGINT, signal.SIGTERM)}
    yield
    for asked, handler in before.items():
        signal.signal(asked, handler)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int, float]]:
    """(resume, ppo.iterations, ppo.lam) of each run that is asked for; none is made."""
    found: list[tuple[bool, int, float]] = []

    def note(config: Config, *, resume: bool, console: object) -> None:
        found.append((resume, config.ppo.iterations, config.ppo.lam))

    monkeypatch.setattr(pipeline, "run", note)
    return found


def call(root: Path, *flags: str) -> int:
    return job_here("ppo", f"--run.root={root}", "--run.name=first", "--resume-if-begun", *flags)


def begin(root: Path, *, done: int | None = None) -> Path:
    """A run's directory as it is once it has begun, or has done so many iterations."""
    run = root / "first"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(BEGAN_WITH.to_dict()))
    if done is not None:
        (run / "summary.json").write_text(json.dumps({"iterations": done, "samples_per_s": 12.5}))
    return run


def test_a_run_that_has_not_begun_is_started(tmp_path: Path, asked: list):
    (tmp_path / "first" / "sft").mkdir(parents=True)  # of jobs/sft.py, for this run
    assert call(tmp_path, "--ppo.iterations=5") == 0
    assert asked == [(False, 5, PPO().lam)]


def test_one_that_has_begun_goes_on_with_what_it_began_with(tmp_path: Path, asked: list):
    begin(tmp_path)
    assert call(tmp_path) == 0
    assert call(tmp_path, "--ppo.iterations=9") == 0
    assert asked == [(True, 7, 0.9), (True, 9, 0.9)]


@pytest.mark.parametrize("flag", ["--resume", "--resume-if-begun"])
@pytest.mark.parametrize("prepared", [(), ("data",)], ids=["own data", "demonstration"])
def test_one_goes_on_whose_successor_was_killed_before_it_began(
    tmp_path: Path, asked: list, flag: str, prepared: tuple[str, ...]
):
    command = ("ppo", f"--run.root={tmp_path}", "--run.name=first", flag)
    run = begin(tmp_path)
    with owned(run):  # by the successor, while it is alive
        run.rename(replaced(run))
        for name in prepared:
            (run / name).mkdir(parents=True)
        assert job_here(*command) == 2
        assert replaced(run).is_dir() and not asked
    assert job_here(*command) == 0
    assert asked == [(True, 7, 0.9)]


def test_one_that_was_moved_goes_on_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    began = tmp_path / "before" / "first"
    data = Data(texts=str(began / "data" / "texts.txt"), prompts="/elsewhere/prompts.txt")
    config = replace(BEGAN_WITH, run=Run(name="first", root=str(began.parent)), data=data)
    run = tmp_path / "runs" / "second"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    found: list[Config] = []
    monkeypatch.setattr(pipeline, "run", lambda config, **_: found.append(config))
    monkeypatch.chdir(tmp_path)
    assert job_here("ppo", "--run.name=second", "--resume") == 0
    assert [one.dir.absolute() for one in found] == [run]
    assert Path(found[0].data.texts or "").absolute() == run / "data" / "texts.txt"
    assert found[0].data.prompts == "/elsewhere/prompts.txt"
    assert found[0].ppo == BEGAN_WITH.ppo


def test_one_that_is_done_shows_its_summary(tmp_path: Path, asked: list, capsys):
    run = begin(tmp_path, done=7)
    assert call(tmp_path) == 0
    assert not asked
    shown = capsys.readouterr().out
    assert "samples per second" in shown and f"report: {run / 'report.html'}" in shown


def test_one_that_ended_before_its_last_iteration_goes_on(tmp_path: Path, asked: list):
    """It was stopped, or is to be longer now."""
    begin(tmp_path, done=6)
    assert call(tmp_path) == 0
    assert asked == [(True, 7, 0.9)]


def test_a_run_that_had_not_begun_is_not_offered_to_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def interrupt(config: Config) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "preflight", interrupt)
    assert job_here("ppo", f"--run.root={tmp_path}", "--run.name=first") == 130
    out, err = capsys.readouterr()
    assert "interrupted; nothing is left behind" in err and "--resume" not in out + err


@pytest.mark.slow
def test_the_same_command_from_the_first_call_to_the_end(new_run: Make, capsys):
    run, place = new_run("retried")
    command = ("ppo", *place, *TINY, "--resume-if-begun")
    assert job_here(*command, "--ppo.iterations=2") == 0
    assert job_here(*command, "--ppo.iterations=3") == 0
    assert [row["step"] for row in rows(run)] == [0, 1, 2, 3]
    capsys.readouterr()
    assert job_here(*command, "--ppo.iterations=3") == 0
    shown = capsys.readouterr().out
    assert "before" in shown and "  ppo  " not in shown
