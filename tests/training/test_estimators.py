"""Every row of the table is refused, or taken, for what it says of itself."""

import importlib.util

import pytest

from rlhf_ray.algos.advantages import ESTIMATORS
from rlhf_ray.config import PPO, Config
from rlhf_ray.training.estimators import check_estimator
from rlhf_ray.training.preflight import preflight


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_response_a_prompt_is_refused_by_those_that_compare(name: str) -> None:
    check_estimator(PPO(estimator=name, samples=2))  # type: ignore[arg-type]
    if not ESTIMATORS[name].needs_group:
        check_estimator(PPO(estimator=name, samples=1))  # type: ignore[arg-type]
        return
    with pytest.raises(ValueError, match=rf"{name} compares .* set --ppo\.samples 4, or .* gae"):
        check_estimator(PPO(estimator=name, samples=1))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_warm_up_of_the_critic_is_refused_by_those_without_one(name: str) -> None:
    if ESTIMATORS[name].needs_values:
        check_estimator(PPO(estimator=name, warmup_iterations=1))  # type: ignore[arg-type]
        return
    with pytest.raises(ValueError, match=rf"warmup_iterations 1 .* {name} has none"):
        check_estimator(PPO(estimator=name, samples=2, warmup_iterations=1))  # type: ignore[arg-type]


def test_a_run_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="rloo compares responses"):
        preflight(Config(ppo=PPO(estimator="rloo")))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else found(name)
    )
    with pytest.raises(ValueError, match=r"--rollout\.backend transformers"):
        preflight(Config())
