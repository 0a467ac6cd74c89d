"""Reward modelling as a user runs it, on Ray: an ensemble, preference strength, samples."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rlhf_ray.data.preferences import load_lists
from rlhf_ray.models.ensemble import member_name, read_ensemble
from rlhf_ray.models.reward_model import RewardModel, read_calibration
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.rewards.scorer import Scorer
from tests.running.here import job_here
from tests.training.worlds import write_lists

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file of lists and a small model to start from."""
    path = tmp_path_factory.mktemp("world")
    data = write_lists(path / "lists.tsv", 40)
    tokenizer = make_tokenizer(data.read_text().split("\n"), vocab=320)
    make_decoder(tokenizer, hidden=64, layers=1, seed=0).save_pretrained(path / "base")
    tokenizer.save_pretrained(path / "base")
    return data, path / "base"


@pytest.mark.slow
def test_members_of_an_ensemble_train_side_by_side(
    ray_address: str, world: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    data, base = world
    flags = (f"--run.root={tmp_path}", "--run.name=e", f"--data.preferences={data}")
    settings = (f"--rm.base={base}", "--rm.members=2", "--rm.lr=3e-3", "--rm.batch-lists=8")
    assert job_here("rm", *flags, *settings, "--data.heldout-fraction=0.3") == 0
    out = tmp_path / "e" / "reward"
    ensemble = read_ensemble(out)
    assert [path.name for path in ensemble.members] == [member_name(0), member_name(1)]
    heads = [RewardModel.from_pretrained(path).head.weight for path in ensemble.members]
    assert not heads[0].equal(heads[1])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["members"] == 2 and metrics["heldout/pair_accuracy"] > 0.6
    assert np.isfinite(Scorer(out, combine="cautious").texts(["good.", "bad."])).all()
    shown = capsys.readouterr().out
    assert f"pair_accuracy       {metrics['heldout/pair_accuracy']:.4f}" in shown
    report = (tmp_path / "e" / "report.html").read_text()
    assert "Score gaps" in report and "Calibration" in report
    for name in ("training.png", "evaluation.png"):
        assert (out / name).read_bytes().startswith(PNG)
    assert job_here("preferences", "evaluate", str(data), "--model", str(out)) == 0
    assert "longer_is_better" in capsys.readouterr().out


@pytest.mark.slow
def test_members_that_had_ended_stay_while_what_they_are_of_does(
    ray_address: str, world: tuple[Path, Path], tmp_path: Path
) -> None:
    lists, base = world
    data = Path(shutil.copy(lists, tmp_path / "lists.tsv"))
    flags = (f"--run.root={tmp_path}", "--run.name=e", f"--data.preferences={data}")
    settings = (f"--rm.base={base}", "--rm.members=2", "--data.heldout-fraction=0.3")
    command = ("rm", *flags, *settings, "--run.overwrite")
    assert job_here(*command) == 0
    out = tmp_path / "e" / "reward"

    def go_on_after_one() -> bool:
        """Start again where one of the two had ended; whether it is still that one."""
        members = out.rename(out.with_name(".reward.members"))
        shutil.rmtree(members / member_name(1))
        made = (members / member_name(0)).stat().st_ino
        assert job_here(*command) == 0
        assert len(read_ensemble(out).members) == 2
        return (out / member_name(0)).stat().st_ino == made

    assert go_on_after_one()
    data.write_text(data.read_text().replace("good", "fine"))
    assert not go_on_after_one()


@pytest.mark.slow
def test_strength_is_measured_then_used(
    ray_address: str, world: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    data, base = world
    flags = (f"--run.root={tmp_path}", "--run.name=s", f"--data.preferences={data}")
    settings = (f"--rm.base={base}", "--strength.models=2", "--rm.lr=3e-3", "--rm.batch-lists=8")
    assert job_here("preferences", "strength", *flags, *settings) == 0
    out = tmp_path / "s" / "strength"
    pairs = [json.loads(line) for line in (out / "strength.jsonl").read_text().splitlines()]
    assert len(pairs) == 120 and all(one["std"] >= 0 for one in pairs)
    assert (out / "strength.md").read_text() in capsys.readouterr().out
    assert (out / "strength.png").read_bytes().startswith(PNG)
    cleaned = tmp_path / "cleaned.jsonl"
    args = ("--how", "flip+margin", "--fraction", "0.1", "--out", str(cleaned))
    assert job_here("preferences", "clean", str(out), *args) == 0
    pairs = [pair for one in load_lists(cleaned) for pair in one.comparisons()]
    assert len(pairs) == 120 and all(pair.margin != 0 for pair in pairs)
    assert job_here("preferences", "strength", *flags, *settings) == 2
    assert "holds a measurement already" in capsys.readouterr().err


@pytest.mark.slow
def test_samples_of_a_policy_serve_meta_training_and_calibration(
    ray_address: str, world: tuple[Path, Path], tmp_path: Path
) -> None:
    data, base = world
    samples = tmp_path / "samples.jsonl"
    flags = (f"--run.root={tmp_path}", "--run.name=m", f"--data.prompts={data}")
    small = ("--rollout.backend=transformers", "--rollout.max-response-tokens=8")
    prefix = ("--data.prompt-prefix-chars", "4", "9", "--prompts=6", "--samples=3")
    wanted = ("--policy", str(base), "--out", str(samples))
    assert job_here("sample", *flags, *small, *prefix, *wanted) == 0
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 6 and all(len(row["responses"]) == 3 for row in rows)
    texts = data.read_text().replace("\n", "\t").split("\t")
    assert all(any(text.startswith(row["prompt"]) for text in texts) for row in rows)
    flags = (f"--run.root={tmp_path}", "--run.name=m", f"--data.preferences={data}")
    meta = (f"--rm.base={base}", "--rm.batch-lists=8", f"--rm.meta.samples={samples}")
    assert job_here("rm", *flags, *meta) == 0
    reward = tmp_path / "m" / "reward"
    rows = map(json.loads, (tmp_path / "m" / "metrics.jsonl").read_text().splitlines())
    assert all(row["meta/difference"] > 0 for row in rows)
    assert job_here("score", "--model", str(reward), "--calibrate", str(samples)) == 0
    assert read_calibration(reward).samples == 18
