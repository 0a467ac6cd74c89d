"""The actor around a reward: what its settings make of scores, and the rows that people look at."""

from pathlib import Path

import pyarrow as pa
import pytest
import ray

from rlhf_ray.actors.scorers import RewardActor, ScorerSpec
from rlhf_ray.config import Reward, RewardSource
from rlhf_ray.data.schemas import ref_columns
from rlhf_ray.models.reward_model import Calibration
from tests.rewards.models import policy_tokenizer
from tests.rewards.test_table import TEXTS, rollouts

MODULE = """
def length(prompts, responses):
    return [float(len(text)) for text in responses]

def words(prompts, responses):
    return [float(len(text.split())) for text in responses]
"""
# length 9, 4, 3 and words 2, 1, 1 of the responses in TEXTS: 2 · length − words
TOTALS = (16.0, 7.0, 5.0)
CALIBRATION = Calibration(mean=6.0, std=2.0, samples=9)

pytestmark = pytest.mark.usefixtures("joined")


@pytest.fixture
def actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RewardActor:
    """In this process: two functions with weights, clipped at 3, .75 off without EOS."""
    (tmp_path / "user_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    policy_tokenizer().save_pretrained(tmp_path / "policy")
    sources = (
        RewardSource(function="user_rewards:length", weight=2.0),
        RewardSource(function="user_rewards:words", weight=-1.0),
    )
    reward = Reward(sources=sources, clip=3.0, missing_eos_penalty=0.75)
    return RewardActor(ScorerSpec(str(tmp_path / "policy"), reward, "float32", 1.0))


def table() -> pa.Table:
    return rollouts(policy_tokenizer(), TEXTS)


def test_scores_are_as_the_settings_say(actor: RewardActor) -> None:
    scored, _ = actor.score(table(), CALIBRATION)
    # (16 − 6) / 2 is clipped; (7 − 6) / 2 lacks its EOS; (5 − 6) / 2
    assert scored.column("score").to_pylist() == pytest.approx([3.0, 0.5 - 0.75, -0.5])
    raw, _ = actor.score(table(), None)
    assert raw.column("score").to_pylist() == pytest.approx([3.0, 3.0 - 0.75, 3.0])


def test_samples_have_raw_rewards_and_the_kl_of_a_whole_response(actor: RewardActor) -> None:
    rows = table()
    lengths = [len(ids) for ids in rows.column("response_token_ids").to_pylist()]
    ids = rows.column("rollout_id").combine_chunks()
    refs = ref_columns(ids, [[-0.5] * length for length in lengths])
    scored, _ = actor.score(rows, CALIBRATION)
    found, _ = actor.describe([(ray.put(rows), ray.put(refs), ray.put(scored))], None)
    found = sorted(found, key=lambda row: -row["rollout_id"])
    assert [row["reward"] for row in found] == pytest.approx(TOTALS)
    assert [row["kl"] for row in found] == pytest.approx([0.5 * length for length in lengths])
    assert [row["length"] for row in found] == lengths
    assert found[0]["response"].strip() == "was good"
