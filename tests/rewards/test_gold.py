"""A gold function is the user's: what goes wrong in it is named."""

from pathlib import Path

import pytest

from rlhf_ray.actors.scorers import RewardActor, ScorerSpec
from rlhf_ray.config import Reward

MODULE = """
def lengths(prompts, responses):
    return (len(text) for text in responses)

def raises(prompts, responses):
    raise KeyError("no such prompt")

def endless(prompts, responses):
    return [1.0, float("inf")]

def one(prompts, responses):
    return [1.0]
"""
ROWS = [{"prompt": "p", "response": "ab"}, {"prompt": "q", "response": "abc"}]


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_gold.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def gold_scores(function: str) -> list:
    reward = Reward(gold=f"user_gold:{function}")
    return RewardActor(ScorerSpec("policy", reward, "float32", 1.0))._gold_scores(ROWS)


def test_its_scores_or_its_fault() -> None:
    assert gold_scores("lengths") == [2, 3]
    with pytest.raises(ValueError, match=r"user_gold:raises raised KeyError: 'no such prompt'"):
        gold_scores("raises")
    with pytest.raises(ValueError, match=r"user_gold:one gave 1 scores for 2 samples"):
        gold_scores("one")
    with pytest.raises(ValueError, match=r"user_gold:endless gave NaN or inf"):
        gold_scores("endless")
