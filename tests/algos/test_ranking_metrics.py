"""Metrics of reward models against plain Python."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algos.ranking import (
    exact_order,
    expected_calibration_error,
    gap_moments,
    kendall_tau_b,
    pair_accuracy,
    score_gaps,
)
from rlhf_ray.algos.ranking_metrics import calibration_bins
from tests.algos.test_ranking import gaps_by_list, ranked_lists

few = settings(max_examples=60, deadline=None)


def tensors(lists):
    scores, ids, ranks = lists
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(ids), torch.tensor(ranks)


@few
@given(lists=ranked_lists(), coarse=st.booleans())
def test_order_metrics_against_plain_python(lists, coarse):
    scores, ids, ranks = lists
    if coarse:
        scores = [float(np.sign(s)) for s in scores]
    s, i, r = tensors((scores, ids, ranks))
    by_list = [g for g in gaps_by_list(scores, ids, ranks).values() if g]
    flat = [d for g in by_list for d in g]
    if not flat:
        with pytest.raises(ValueError, match="no order to compare"):
            exact_order(s, i, ranks_N=r)
        with pytest.raises(ValueError, match="no order to compare"):
            kendall_tau_b(s, i, ranks_N=r)
        return
    gaps = score_gaps(s, i, ranks_N=r)
    assert sorted(gaps.tolist()) == pytest.approx(sorted(flat))
    assert float(pair_accuracy(gaps)) == pytest.approx(np.mean([d > 0 for d in flat]))
    mean, std = gap_moments(gaps)
    assert float(mean) == pytest.approx(np.mean(flat), abs=1e-9)
    assert float(std) == pytest.approx(np.std(flat), abs=1e-6)
    right = np.mean([all(d > 0 for d in g) for g in by_list])
    assert float(exact_order(s, i, ranks_N=r)) == pytest.approx(right)


def tau_b_by_hand(x, y):
    """(concordant − discordant) / √(pairs untied in x · pairs untied in y); 0 where all tie."""
    signs = [
        (np.sign(x[j] - x[i]), np.sign(y[j] - y[i])) for i, j in combinations(range(len(x)), 2)
    ]
    untied = math.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))
    return sum(a * b for a, b in signs) / untied if untied else 0.0


def test_the_oracle_of_tau_b_gives_the_example_of_scipys_documentation():
    assert tau_b_by_hand([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.47140452079103173)


@few
@given(lists=ranked_lists(), coarse=st.booleans())
def test_tau_b_is_its_definition(lists, coarse):
    scores, ids, ranks = lists
    if coarse:
        scores = [float(np.sign(s)) for s in scores]
    taus = []
    for name in set(ids):
        rows = [k for k, n in enumerate(ids) if n == name]
        if len({ranks[k] for k in rows}) > 1:
            taus.append(tau_b_by_hand([-ranks[k] for k in rows], [scores[k] for k in rows]))
    if taus:
        s, i, r = tensors((scores, ids, ranks))
        assert float(kendall_tau_b(s, i, ranks_N=r)) == pytest.approx(np.mean(taus), abs=1e-9)


def test_input_order_is_rank_order():
    scores, ids = torch.tensor([3.0, 1.0, 2.0, 9.0, 4.0]), torch.tensor([6, 6, 6, 2, 2])
    assert float(pair_accuracy(score_gaps(scores, ids))) == pytest.approx(3 / 4)
    assert float(exact_order(scores, ids)) == 0.5
    assert float(kendall_tau_b(scores, ids)) == pytest.approx((1 / 3 + 1) / 2)
    assert torch.equal(score_gaps(scores.long(), ids), score_gaps(scores, ids))


def test_a_model_that_ties_everything_gets_nothing():
    scores, ids = torch.ones(7), torch.tensor([0, 0, 0, 0, 1, 1, 1])
    assert float(pair_accuracy(score_gaps(scores, ids))) == 0
    assert float(exact_order(scores, ids)) == 0
    assert float(kendall_tau_b(scores, ids)) == 0


def ece_by_hand(gaps):
    bins = [[] for _ in range(10)]
    for gap in gaps:
        confidence = 1 / (1 + math.exp(-abs(gap)))
        index = sum(confidence >= 0.5 + 0.05 * k for k in range(1, 10))
        bins[index].append((confidence, gap > 0))
    return sum(abs(sum(right - sure for sure, right in b)) for b in bins) / len(gaps)


@few
@given(gaps=st.lists(st.floats(-8, 8), min_size=1, max_size=40))
def test_calibration_error_against_plain_python(gaps):
    got = expected_calibration_error(torch.tensor(gaps, dtype=torch.float64))
    sure = [1 / (1 + math.exp(-abs(g))) for g in gaps]
    on_an_edge = any(abs(c * 20 - round(c * 20)) < 1e-9 and c > 0.5 for c in sure)
    if not on_an_edge:
        assert float(got) == pytest.approx(ece_by_hand(gaps), abs=1e-9)


def test_calibration_error_by_hand():
    """Four pairs at confidence .8, three right: |.75 − .8|; certainty that is wrong costs 1."""
    gap = math.log(4.0)
    assert float(expected_calibration_error(torch.tensor([gap, gap, gap, -gap]))) == (
        pytest.approx(0.05, abs=1e-6)
    )
    assert float(expected_calibration_error(torch.tensor([-100.0]))) == pytest.approx(1.0)
    assert float(expected_calibration_error(torch.tensor([100.0]))) == pytest.approx(0.0)
    assert float(expected_calibration_error(torch.tensor([0.0]))) == pytest.approx(0.5)


def test_calibration_bins_add_up_over_splits():
    gaps = torch.randn(50, dtype=torch.float64)
    parts = [calibration_bins(part) for part in gaps.split(20)]
    for whole, *split in zip(calibration_bins(gaps), *parts, strict=True):
        torch.testing.assert_close(sum(split), whole)


def test_nonsense_raises():
    for metric in (pair_accuracy, gap_moments, expected_calibration_error):
        with pytest.raises(ValueError, match="gaps_P is empty"):
            metric(torch.zeros(0))
        with pytest.raises(ValueError, match="floating point"):
            metric(torch.tensor([1]))
    with pytest.raises(ValueError, match="list_ids_N has shape"):
        score_gaps(torch.zeros(2), torch.zeros(3, dtype=torch.long))


def test_what_is_not_a_number_is_never_right():
    ids, bad = torch.zeros(2, dtype=torch.long), torch.tensor([float("nan"), float("nan")])
    assert float(exact_order(bad, ids)) == 0
    assert float(exact_order(torch.full((2,), -torch.inf), ids)) == 0
    with pytest.raises(ValueError, match="gaps_P holds NaN"):
        expected_calibration_error(bad)
