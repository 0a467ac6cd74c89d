"""What a held-out evaluation says, against numbers worked out by hand."""

import math

import pytest

from rlhf_ray.models.reward_model import Calibration
from rlhf_ray.training.evaluation import calibrate, distinct_bigrams, evaluate, kl_efficiency


def sample(
    reward: float, tokens: list[int], *, kl: float = 0.0, reason: str = "eos", **more
) -> dict:
    return {
        "reward": reward,
        "kl": kl,
        "length": len(tokens),
        "finish_reason": reason,
        "response_token_ids": tokens,
        **more,
    }


SAMPLES = [
    sample(1.0, [5, 6, 5, 6], kl=0.5),  # bigrams 56 65 56
    sample(3.0, [5, 6], kl=1.5, reason="length"),  # bigram 56
    sample(5.0, [7], kl=-0.5),  # none
]


def test_numbers_by_hand() -> None:
    found = evaluate(SAMPLES, Calibration(mean=2.0, std=0.5, samples=3))
    assert found.score == pytest.approx((-2 + 2 + 6) / 3)
    assert found.score_std == pytest.approx(math.sqrt((16 + 0 + 16) / 3))
    assert found.kl == pytest.approx(0.5)
    assert found.length == pytest.approx(7 / 3)
    assert found.eos_fraction == pytest.approx(2 / 3)
    assert found.distinct2 == pytest.approx(2 / 4)
    assert found.gold is None and "heldout/gold" not in found.metrics()


def test_gold_is_a_mean_and_a_metric_where_it_is_known() -> None:
    samples = [row | {"gold": gold} for row, gold in zip(SAMPLES, (0.0, 1.0, 0.5), strict=True)]
    found = evaluate(samples, Calibration(mean=0.0, std=1.0, samples=3))
    assert found.gold == pytest.approx(0.5)
    assert found.metrics()["heldout/gold"] == pytest.approx(0.5)


def test_the_reference_policy_scores_zero_with_deviation_one() -> None:
    found = evaluate(SAMPLES, calibrate(SAMPLES))
    assert found.score == pytest.approx(0.0, abs=1e-12)
    assert found.score_std == pytest.approx(1.0)


def test_calibration_is_of_the_whole_population() -> None:
    found = calibrate(SAMPLES)
    assert (found.mean, found.samples) == (3.0, 3)
    assert found.std == pytest.approx(math.sqrt(8 / 3))


def test_a_reward_that_never_differs_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        calibrate([sample(0.25, [1]), sample(0.25, [2])])
    message = str(caught.value)
    assert "gives 0.25 to all 2 responses" in message and "Check the reward's sources" in message


def test_rewards_that_differ_by_rounding_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="to all 2 responses"):
        calibrate([sample(1.0, [1]), sample(1.0 + 1e-12, [2])])


def test_a_reward_that_drops_everything_is_named() -> None:
    with pytest.raises(ValueError, match="dropped all responses of the reference policy") as caught:
        calibrate([])
    assert "look at its function, or at `on_error`" in str(caught.value)


def test_bigrams() -> None:
    assert distinct_bigrams([[1, 2, 3], [1, 2, 4]]) == pytest.approx(3 / 4)
    assert distinct_bigrams([[1], []]) == 0.0


def test_efficiency_of_an_exponential_tilt_is_one() -> None:
    # Tilting N(0, 1) by exp(βr) shifts its mean by β and costs β²/2 nats.
    beta = 0.7
    assert kl_efficiency(beta, beta**2 / 2) == pytest.approx(1.0)
    assert kl_efficiency(0.3, 0.0) == 0.0
