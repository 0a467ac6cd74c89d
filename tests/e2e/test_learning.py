"""A whole run learns what its reward asks for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.running.jobs import TINY, rows, succeed, summary

Make = Callable[[str], tuple[Path, tuple[str, ...]]]


def vowels(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The share of vowels among the characters."""
    return [sum(map(response.count, "aeiou")) / max(1, len(response)) for response in responses]


@pytest.mark.slow
def test_a_run_raises_its_reward_on_prompts_that_it_has_not_seen(
    base: Path, new_run: Make, tmp_path: Path
):
    run, place = new_run("learning")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("reward: {sources: [{function: 'tests.e2e.test_learning:vowels'}]}")
    start = (f"--recipe={recipe}", f"--model.path={run / 'sft'}", "--sft.epochs=0")
    data = base / "data"
    prompts = (f"--data.prompts={data / 'prompts.txt'}", "--evaluate.prompts=64")
    heldout = f"--data.heldout-prompts={data / 'heldout_prompts.txt'}"
    size = ("--ppo.iterations=16", "--ppo.prompts=64", "--ppo.epochs=4", "--cluster.threads=1")
    bold = ("--ppo.lr=3e-3", "--ppo.kl-coef=0.01", "--ppo.critic=separate")
    succeed("ppo", *place, *TINY, *start, *prompts, heldout, *size, *bold)
    found = summary(run)["heldout"]
    assert found["score_after"] > found["score_before"] + 1.5, "deviations of the first policy's"
    assert rows(run)[-1]["kl/efficiency"] > 0.2
    assert rows(run)[-1]["grad/norm_critic"] > 0
