"""What holds of every source of reward, whatever scores."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.config import RewardSource
from rlhf_ray.models.ensemble import member_name, write_ensemble
from rlhf_ray.models.reward_model import Calibration
from rlhf_ray.rewards.combine import build_source
from rlhf_ray.rewards.micro_batches import Compute
from rlhf_ray.rewards.protocol import Responses, RewardFunction
from tests.rewards.models import batch_of, policy_tokenizer, save_classifier, save_reward_model

PROMPTS = ["the food was", "the", "", "the staff was rude and the room"]
RESPONSES = [" good</s>", " staff was rude", "the room was clean</s>", "</s>"]
KINDS = ["trained", "other tokens", "ensemble", "encoder", "decoder", "function"]
USER_MODULE = """
def weigh(prompts, responses):
    return [len(p) + 2.5 * len(r) for p, r in zip(prompts, responses)]
"""
TOKENIZER = policy_tokenizer()


@pytest.fixture(scope="module", params=KINDS)
def reward(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RewardFunction]:
    place = tmp_path_factory.mktemp("source")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        made = build_source(source_of(request.param, place), TOKENIZER, Compute())
        yield made
        made.close()


def source_of(kind: str, place: Path) -> RewardSource:
    path = place / "model"
    if kind == "function":
        (place / "weighing.py").write_text(USER_MODULE)
        return RewardSource(function="weighing:weigh", processes=2)
    if kind in ("encoder", "decoder"):
        save_classifier(path, decoder=kind == "decoder", labels=1)
        return RewardSource(classifier=str(path))
    if kind == "ensemble":
        members = [member_name(0), member_name(1)]
        for name in members:
            save_reward_model(path / name, TOKENIZER)
        write_ensemble(path, members, [Calibration(0.5, 2.0, 9), Calibration(-1.0, 0.5, 9)])
    else:
        other = policy_tokenizer(["the rooms were many"])
        save_reward_model(path, TOKENIZER if kind == "trained" else other)
    return RewardSource(model=str(path))


def batch(rows: list[int]) -> Responses:
    return batch_of(TOKENIZER, [PROMPTS[i] for i in rows], [RESPONSES[i] for i in rows])


def test_one_finite_score_a_row_and_not_all_the_same(reward: RewardFunction) -> None:
    result = reward(batch([0, 1, 2, 3]))
    assert result.scores.shape == result.valid.shape == (4,)
    assert (result.scores.dtype, result.valid.dtype) == (np.float32, np.bool_)
    assert np.isfinite(result.scores).all() and result.valid.all()
    assert len(np.unique(result.scores)) == 4


@settings(max_examples=10, deadline=None)
@given(rows=st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_a_score_is_its_rows_whatever_stands_beside_it(
    reward: RewardFunction, rows: list[int]
) -> None:
    alone = np.concatenate([reward(batch([i])).scores for i in range(4)])
    assert reward(batch(rows)).scores == pytest.approx(alone[rows], abs=1e-5)


def test_the_same_batch_gives_the_same_bits(reward: RewardFunction) -> None:
    asked = batch([2, 0, 1])
    assert np.array_equal(reward(asked).scores, reward(asked).scores)


def test_no_rows_have_no_scores(reward: RewardFunction) -> None:
    result = reward(batch([]))
    assert result.scores.shape == result.valid.shape == (0,)
    assert result.scores.dtype == np.float32
