"""The run's calibration is stored with the reward model that it trained, and with no other."""

import dataclasses
from pathlib import Path

import pytest

from rlhf_ray.config import Config, Reward, RewardSource
from rlhf_ray.models.reward_model import Calibration, read_calibration
from rlhf_ray.training.calibration import store_with_model
from tests.rewards.test_scorer import write_model
from tests.training.worlds import config_for

FOUND = Calibration(1.5, 2.0, 256)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_for(tmp_path, 8)


def test_it_is_stored_with_the_runs_own_model(config: Config) -> None:
    store_with_model(config, FOUND)  # no model yet: nothing to store it with
    path = write_model(config.dir / "reward")
    store_with_model(config, FOUND)
    assert read_calibration(path) == FOUND


def test_a_model_that_is_not_the_whole_reward_keeps_what_it_has(config: Config) -> None:
    path = write_model(config.dir / "reward")
    source = RewardSource(model=str(path))
    other = dataclasses.replace(config, reward=Reward(sources=(source,)))
    store_with_model(other, FOUND)
    assert read_calibration(path) is None
