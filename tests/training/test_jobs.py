"""jobs/sft.py and jobs/rm.py as a user runs them, without a second start of Python."""

import json
from pathlib import Path

import pytest

from rlhf_ray.models.reward_model import RewardModel
from tests.running.here import job_here
from tests.running.jobs import rows
from tests.training.worlds import write_lists

SMALL = ("--model.hidden=64", "--model.layers=1", "--model.vocab=320", "--sft.epochs=1")


def test_sft_then_rm(ray_address: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write_lists(tmp_path / "lists.tsv", 40)
    run = (f"--run.root={tmp_path}", "--run.name=small")
    assert job_here("sft", *run, *SMALL, f"--data.texts={data}") == 0
    shown = capsys.readouterr().out
    assert f"model: {tmp_path}/small/sft" in shown and "held-out perplexity" in shown
    more = ("--rm.lm-coef=0.1", "--rm.centring=0.1", "--rm.contrastive.method=simcse")
    assert job_here("rm", *run, *more, f"--data.preferences={data}") == 0
    losses = {name for name in rows(tmp_path / "small", "rm")[-1] if name.startswith("loss/")}
    assert losses == {"loss/rank", "loss/lm", "loss/centring", "loss/contrastive"}
    metrics = json.loads((tmp_path / "small/reward/metrics.json").read_text())
    expected = f"pair_accuracy       {metrics['heldout/pair_accuracy']:.4f}"
    assert expected in capsys.readouterr().out
    RewardModel.from_pretrained(tmp_path / "small/reward")
    assert job_here("rm", *run, f"--data.preferences={data}") == 2
    assert "holds the model of an earlier run: give another --run.name" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sft", "rm"])
def test_the_models_of_a_ppo_run_stay(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "begun/checkpoints").mkdir(parents=True)
    run = (f"--run.root={tmp_path}", "--run.name=begun", "--run.overwrite")
    assert job_here(name, *run) == 2
    assert "holds a PPO run, which goes on with the models" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        (
            "sft",
            ["--data.texts", "absent.txt"],
            "--data.texts absent.txt: there is no such file or directory",
        ),
        ("rm", [], "run jobs/sft.py with the same --run.name first, or give --rm.base DIR"),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(
    name: str, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert job_here(name, f"--run.root={tmp_path}", *flags) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.startswith("error: ") and shown.count("\n") == 1
