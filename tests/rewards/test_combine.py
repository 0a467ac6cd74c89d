"""Several sources as one reward: weights, names, validity, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from rlhf_ray.config import RewardSource
from rlhf_ray.rewards.combine import CombinedReward, Source, build, unique_names
from rlhf_ray.rewards.protocol import Responses, Scores
from rlhf_ray.rewards.trained import TrainedReward
from tests.rewards.models import batch_of, policy_tokenizer, save_classifier, save_reward_model

USER_MODULE = """
import math

def length(prompts, responses):
    return [float(len(r)) for r in responses]

def no_rude(prompts, responses):
    return [math.nan if "rude" in r else 1.0 for r in responses]
"""
PROMPTS = ["the food was", "the staff", "the room was"]
RESPONSES = [" good</s>", " was rude</s>", " clean"]


@pytest.fixture(autouse=True)
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_rewards.py").write_text(USER_MODULE)
    monkeypatch.chdir(tmp_path)


class Fixed:
    """A source that gives what it is told, and remembers that it was closed."""

    def __init__(self, scores: list[float], valid: list[bool] | None = None) -> None:
        self.scores = np.array(scores, dtype=np.float32)
        self.valid = np.array(valid or [True] * len(scores))
        self.closed = False

    def __call__(self, batch: Responses) -> Scores:
        return Scores(scores=self.scores, valid=self.valid)

    def close(self) -> None:
        self.closed = True


def test_three_kinds_of_source_add_up_by_weight(tmp_path: Path) -> None:
    tokenizer = policy_tokenizer()
    save_reward_model(tmp_path / "rm", tokenizer)
    save_classifier(tmp_path / "classifier", decoder=False, labels=2)
    sources = [
        RewardSource(model=str(tmp_path / "rm"), weight=2.0),
        RewardSource(classifier=str(tmp_path / "classifier"), weight=-0.5),
        RewardSource(function="user_rewards:length", weight=0.1),
        RewardSource(model=str(tmp_path / "rm")),
    ]
    batch = batch_of(tokenizer, PROMPTS, RESPONSES)
    reward = build(sources, tokenizer, dtype="float32")
    result = reward(batch)
    reward.close()
    assert reward.names == ["reward", "classifier", "length", "reward_2"]
    parts = result.components
    assert list(parts) == reward.names
    assert parts["length"].tolist() == [5, 9, 6]
    assert np.array_equal(parts["reward"], parts["reward_2"])
    assert np.ptp(parts["reward"]) > 0 and np.ptp(parts["classifier"]) > 0
    expected = 3 * parts["reward"] - 0.5 * parts["classifier"] + 0.1 * parts["length"]
    assert result.scores == pytest.approx(expected, rel=1e-5)
    row = {name: float(values[1]) for name, values in parts.items()}
    assert reward.total(row) == pytest.approx(float(result.scores[1]), rel=1e-5)


def test_a_row_that_one_source_drops_is_dropped() -> None:
    first, second = Fixed([1, 2, 3], [True, False, True]), Fixed([1, 1, 1], [True, True, False])
    reward = CombinedReward([Source("a", first, 1.0), Source("b", second, 1.0)])
    result = reward(batch_of(policy_tokenizer(), PROMPTS, RESPONSES))
    assert result.valid.tolist() == [True, False, False]
    assert result.scores.dtype == np.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_of_a_model_that_is_not_finite_names_source_and_prompt(bad: float) -> None:
    reward = CombinedReward(
        [Source("good", Fixed([1, 2, 3]), 1.0), Source("rm", Fixed([1, bad, 3]), 1.0)]
    )
    with pytest.raises(ValueError, match=r"reward 'rm' scored .* 'the staff' and .* ' was rude'"):
        reward(batch_of(policy_tokenizer(), PROMPTS, RESPONSES))


def test_settings_of_a_function_reach_it() -> None:
    tokenizer = policy_tokenizer()
    batch = batch_of(tokenizer, PROMPTS, RESPONSES)
    with pytest.raises(ValueError, match="'user_rewards:no_rude' returned nan"):
        build([RewardSource(function="user_rewards:no_rude")], tokenizer)(batch)
    settings = {"on_error": "default", "default": -3.0, "processes": 2, "timeout_s": 5.0}
    reward = build([RewardSource(function="user_rewards:no_rude", **settings)], tokenizer)
    assert reward(batch).scores.tolist() == [1, -3, 1]
    assert len(reward._sources[0].call._pool.pids()) == 2
    reward.close()


def test_no_source_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no reward"):
        build([], policy_tokenizer())


def test_what_was_started_ends_when_a_later_source_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Fixed([1.0])
    monkeypatch.setattr("rlhf_ray.rewards.combine.TrainedReward", lambda *_: started)
    sources = [RewardSource(model="anywhere"), RewardSource(function="user_rewards:no_such")]
    with pytest.raises(ValueError, match="no function 'no_such'"):
        build(sources, policy_tokenizer())
    assert started.closed


def test_a_missing_reward_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no reward model"):
        build([RewardSource(model=str(tmp_path))], policy_tokenizer())


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["reward"], ["reward"]),
        (["reward", "f", "reward", "reward"], ["reward", "f", "reward_2", "reward_3"]),
        (["f", "f", "f_2"], ["f", "f_3", "f_2"]),
        ([], []),
    ],
)
def test_names_are_unique(names: list[str], unique: list[str]) -> None:
    assert unique_names(names) == unique


def test_the_project_s_own_reward_model_is_what_model_means(tmp_path: Path) -> None:
    tokenizer = policy_tokenizer()
    save_reward_model(tmp_path, tokenizer)
    reward = build([RewardSource(model=str(tmp_path))], tokenizer)
    assert isinstance(reward._sources[0].call, TrainedReward)
