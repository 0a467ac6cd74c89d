"""What users get wrong, in jobs as they run them: exit 2, one line with cause and fix."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.running.interrupted import Interrupted
from tests.running.jobs import STEPS, TINY, Finished, actor_processes, job, rows, summary, wait_for

Make = Callable[[str], tuple[Path, tuple[str, ...]]]


def refused(done: Finished, *expected: str) -> None:
    """The job ended with status 2 and says all of `expected` in its last line."""
    assert done.code == 2, done.out[-2000:]
    assert "Traceback" not in done.out
    last = done.out.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for words in expected:
        assert words in last, f"{words!r} is not in: {last}"


def test_a_missing_file_is_named_before_anything_starts(tmp_path: Path):
    flags = (f"--run.root={tmp_path}", "--data.texts=no/such/texts.txt")
    refused(job("ppo", *flags), "--data.texts no/such/texts.txt", "no such file")
    assert not list(tmp_path.glob("*/checkpoints"))


def test_a_broken_line_is_named_with_its_number(tmp_path: Path, ray_address: str):
    bad = tmp_path / "texts.jsonl"
    bad.write_text('{"text": "good"}\n{"text": "bad\n', encoding="utf-8")
    flags = (f"--run.root={tmp_path}", f"--data.texts={bad}", "--sft.epochs=1")
    refused(job("sft", *flags), "texts.jsonl:2", "broken JSON")


def test_an_empty_dataset_is_refused(new_run: Make, tmp_path: Path):
    empty = tmp_path / "prompts.txt"
    empty.write_text("\n", encoding="utf-8")
    _, place = new_run("empty")
    refused(job("ppo", *place, *TINY, f"--data.prompts={empty}"), "prompts.txt", "holds no prompt")


def test_what_the_cluster_lacks_is_said_at_once(new_run: Make):
    _, place = new_run("greedy")
    done = job("ppo", *place, *TINY, "--cluster.generators=50")
    refused(done, "the run asks for 25.5 CPU", "the cluster has 2", "--cluster.generators")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        pytest.param(
            (),
            "a run that one GPU has to itself, and Ray has 0",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
        (("--ppo.max-staleness=1",), "ppo.max_staleness 1"),
        (("--rollout.backend=transformers",), "rollout.backend is transformers"),
    ],
)
def test_weights_by_cuda_ipc_where_they_cannot_go_that_way(
    new_run: Make, more: tuple[str, ...], why: str
):
    _, place = new_run("shared")
    flags = (*place, *TINY, "--cluster.weights-by=cuda_ipc", *more)
    refused(job("ppo", *flags), "cluster.weights_by cuda_ipc", why, "leave it out")


def test_a_context_that_the_model_lacks_is_refused(new_run: Make):
    _, place = new_run("long")
    done = job("ppo", *place, *TINY, "--data.max-prompt-tokens=100000")
    refused(done, "data.max_prompt_tokens 100000", "lower one of the two")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "expected"),
    [("raises", "the polite-o-meter is out of order"), ("nowhere", "nowhere")],
)
def test_a_reward_function_that_fails_ends_the_run_with_its_cause(
    new_run: Make, tmp_path: Path, function: str, expected: str
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"reward: {{sources: [{{function: 'tests.e2e.bad_rewards:{function}'}}]}}\n")
    run, place = new_run(function)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"I bought thing {i}\n" for i in range(40)), encoding="utf-8")
    policy = tmp_path / "policy"
    shutil.copytree(run / "sft", policy)
    (run / "checkpoints").mkdir()
    flags = (*place, *TINY, f"--recipe={recipe}", f"--data.prompts={prompts}", "--run.overwrite")
    done = job("ppo", *flags, "--sft.epochs=0", f"--model.path={policy}")
    refused(done, f"bad_rewards:{function}", expected)
    wait_for(lambda: not actor_processes(), seconds=30, why="an actor outlives the run")
    if function == "nowhere":  # it never began: the old run is back
        assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "reward", "sft"]


def test_ctrl_c_leaves_a_run_to_resume_and_no_process(interrupted: Interrupted):
    assert interrupted.code == 130
    assert "goes on with --resume" in interrupted.said
    newest = interrupted.checkpoints[-1]
    assert int(newest.name.removeprefix("step-")) < STEPS, "it was over before it was stopped"
    assert f"{newest} is damaged" in interrupted.said_when_resumed
    run = interrupted.directory
    assert summary(run)["rollouts"]["consumed"] == STEPS * 16
    assert [row["step"] for row in rows(run)] == list(range(STEPS + 1))


@pytest.mark.slow
def test_a_resume_that_is_refused_leaves_the_run_as_it_was(interrupted: Interrupted):
    run = interrupted.directory
    begun_with = (run / "config.yaml").read_text()
    again = (f"--run.root={run.parent}", f"--run.name={run.name}", "--resume")
    critic = "shared" if "critic: separate" in begun_with else "separate"
    more = (f"--ppo.iterations={STEPS + 1}", f"--ppo.critic={critic}")
    refused(job("ppo", *again, *more), "resume with the model and critic that wrote it")
    assert (run / "config.yaml").read_text() == begun_with
