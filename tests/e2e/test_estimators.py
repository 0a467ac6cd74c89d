"""Whole runs with other estimators than GAE, another temperature, and without vLLM."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running.jobs import TINY, rows, succeed, summary

Make = Callable[[str], tuple[Path, tuple[str, ...]]]
GROUPS = ("--ppo.prompts=4", "--ppo.samples=4")


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--ppo.estimator=rloo", *GROUPS),
        ("--ppo.estimator=grpo", *GROUPS, "--rollout.temperature=0.7"),
        ("--ppo.estimator=reinforce_pp", "--rollout.backend=transformers"),
    ],
    ids=["rloo", "grpo-cooler", "reinforce_pp-transformers"],
)
def test_a_run_goes_through_the_same_loop(new_run: Make, flags: tuple[str, ...]):
    run, place = new_run("other")
    succeed("ppo", *place, *TINY, "--ppo.iterations=2", *flags)
    counts = {"committed": 32, "consumed": 32, "requeued": 0, "duplicated": 0}
    assert summary(run)["rollouts"] == counts
    first, last = rows(run)[1:]
    # Generator, learner and reference sample and score by the same temperature.
    assert abs(first["kl/mean_k1"]) < 0.05
    assert first["policy/ratio_max"] < 1.5
    assert "value/explained_variance" not in last and last["grad/norm"] > 0
