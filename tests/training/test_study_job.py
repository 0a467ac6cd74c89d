"""jobs/study_reward.py from data to page, on a world so small that only the way is tested."""

from pathlib import Path

import pytest

from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.training.ownership import owned
from tests.running.here import job_here
from tests.training.worlds import write_lists

SMALL = ("--rm.lr=3e-3", "--rm.batch-lists=8", "--model.dtype=float32", "--strength.models=2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Flags: data, another set, and a small model to start from."""
    path = tmp_path_factory.mktemp("study")
    data, other = write_lists(path / "lists.tsv", 40), write_lists(path / "other.tsv", 8, seed=9)
    tokenizer = make_tokenizer(data.read_text().split("\n"), vocab=320)
    make_decoder(tokenizer, hidden=64, layers=1, seed=0).save_pretrained(path / "base")
    tokenizer.save_pretrained(path / "base")
    flags = (f"--data.preferences={data}", f"--rm.base={path / 'base'}", "--elsewhere", str(other))
    return (*SMALL, *flags)


@pytest.mark.parametrize(
    ("study", "seeds", "trials"),
    [
        ("quality", 2, ["reward model"]),
        ("labels", 2, ["nothing", "flip", "drop", "soft", "margin", "flip+margin"]),
        ("remedies", 1, ["plain", "simcse on pairs", "swav on differences", "MetaRM"]),
    ],
)
def test_each_study_writes_its_page(
    study: str, seeds: int, trials: list[str], world: tuple[str, ...], tmp_path: Path, capsys
) -> None:
    flags = (study, *world, f"--out={tmp_path}", f"--seeds={seeds}")
    assert job_here("study_reward", *flags) == 0
    page = (tmp_path / f"{study}.md").read_text()
    rows = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")}
    assert set(trials) < rows and "pair_accuracy" in page
    if study == "labels":
        assert "share of wrong labels by decile" in page and "flip over nothing" in page
    else:
        assert "other accuracy" in page
    capsys.readouterr()
    assert job_here("study_reward", *flags) == 0  # all is done already
    assert (tmp_path / f"{study}.md").read_text() == page


def test_results_of_other_settings_are_not_shown_as_of_these(tmp_path: Path, capsys) -> None:
    missing = tmp_path / "missing.jsonl"
    out = tmp_path / "out"
    flags = ("quality", f"--data.preferences={missing}", f"--out={out}")
    assert job_here("study_reward", *flags, "--rm.lr=1e-3") == 2
    assert job_here("study_reward", *flags, "--rm.lr=2e-3") == 2  # nothing came of the first
    assert "there is no file" in capsys.readouterr().err
    (out / "reward_model.0.json").write_text("{}")
    kept = (out / "settings.json").read_text()
    assert job_here("study_reward", *flags, "--rm.lr=3e-3") == 2
    said = capsys.readouterr().err
    assert "of other settings, --rm.lr 0.002 instead of 0.003: give another --out" in said
    assert job_here("study_reward", *flags, "--rm.lr=2e-3", "--seeds=5") == 2
    assert "there is no file" in capsys.readouterr().err  # as far as without results
    assert (out / "settings.json").read_text() == kept


def test_one_process_at_a_time_writes_to_a_directory(tmp_path: Path, capsys) -> None:
    with owned(tmp_path / "out"):
        assert job_here("study_reward", "quality", f"--out={tmp_path / 'out'}") == 2
    said = capsys.readouterr().err
    assert f"another process works in {tmp_path / 'out'}: wait for its end, or give another" in said


def test_an_unknown_study_is_said(capsys) -> None:
    assert job_here("study_reward", "speed") == 2
    assert "one of quality, labels, remedies (now 'speed')" in capsys.readouterr().err
