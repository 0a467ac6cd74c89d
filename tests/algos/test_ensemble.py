"""Combined scores against plain Python."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.algos.ensemble import combine_scores

NUMBERS = st.floats(-1e3, 1e3, allow_nan=False)


@given(st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(NUMBERS, min_size=n, max_size=n), min_size=1, max_size=4)
), st.floats(0, 3))  # fmt: skip
def test_against_plain_python(rows: list[list[float]], caution: float) -> None:
    scores_MN = torch.tensor(rows, dtype=torch.float64)
    columns = list(zip(*rows, strict=True))
    expected = {
        "mean": [statistics.fmean(column) for column in columns],
        "min": [min(column) for column in columns],
        "cautious": [
            statistics.fmean(column) - caution * statistics.pstdev(column) for column in columns
        ],
    }
    for how, values in expected.items():
        found = combine_scores(scores_MN, how=how, caution=caution)
        torch.testing.assert_close(
            found, torch.tensor(values, dtype=torch.float64), atol=1e-8, rtol=1e-9
        )


def test_golden_values() -> None:
    scores_MN = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert combine_scores(scores_MN).tolist() == [2.0, 0.0]
    assert combine_scores(scores_MN, how="cautious", caution=0.5).tolist() == [1.5, 0.0]
    assert combine_scores(scores_MN.bfloat16(), how="min").dtype == torch.float32
    assert torch.equal(combine_scores(scores_MN.long()), combine_scores(scores_MN))


def test_what_cannot_be_combined() -> None:
    scores_MN = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="median"):
        combine_scores(scores_MN, how="median")
    with pytest.raises(ValueError, match="caution -1"):
        combine_scores(scores_MN, how="cautious", caution=-1.0)
    with pytest.raises(ValueError, match="0 models"):
        combine_scores(scores_MN[:0])
    with pytest.raises(ValueError, match="scores_MN"):
        combine_scores(scores_MN[0])
