"""What studies are made of: noise, AUROC, pairs, tables; and that a stopped study goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.data.ranked_list import Comparison, RankedList
from rlhf_ray.training.studies import auroc, cell, flipped, gain, one_pair_a_list, run_trials, table

LISTS = [
    RankedList("", tuple(f"{i}-{k}" for k in range(4)), (1, 2, 3, 4), "x", i) for i in range(200)
]


def auroc_by_hand(scores, labels):
    """Share of (positive, negative) with the positive above; half for a tie."""
    positive = [s for s, label in zip(scores, labels, strict=True) if label]
    negative = [s for s, label in zip(scores, labels, strict=True) if not label]
    return np.mean([0.5 * (1 + np.sign(p - n)) for p in positive for n in negative])


def test_auroc_of_four() -> None:
    assert auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == 0.75


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_its_definition(rows: list[tuple[int, bool]]) -> None:
    weakness, wrong = zip(*rows, strict=True)
    if len(set(wrong)) == 2:
        assert auroc(weakness, wrong) == pytest.approx(auroc_by_hand(weakness, wrong))


def test_labels_are_flipped_with_the_probability_asked_for() -> None:
    noisy, wrong = flipped(LISTS, 0.2, seed=1)
    assert len(wrong) == 1200 and 0.16 < np.mean(wrong) < 0.24
    turned = [pair for one in noisy for pair in one.comparisons()]
    plain = [pair for one in LISTS for pair in one.comparisons()]
    for mark, now, before in zip(wrong, turned, plain, strict=True):
        assert (now.better == before.worse) == mark == (now.better != before.better)
    assert flipped(LISTS, 0.2, seed=1) == (noisy, wrong) != flipped(LISTS, 0.2, seed=2)
    pairs = one_pair_a_list(LISTS, 0)
    swapped, marks = flipped(pairs, 0.5, seed=0)
    assert [one.ranks == (2, 1) for one in swapped] == marks and not any(p.pairs for p in swapped)


def test_a_pair_with_a_margin_is_flipped_as_it_says() -> None:
    pairs = (Comparison(0, 1, margin=0.5),)
    lists = [RankedList("", (f"good {i}", f"bad {i}"), (1, 2), "x", i, pairs=pairs)
             for i in range(40)]  # fmt: skip
    noisy, wrong = flipped(lists, 0.5, seed=0)
    assert any(wrong) and not all(wrong)
    for one, mark in zip(noisy, wrong, strict=True):
        assert one.comparisons() == ((Comparison(1, 0),) if mark else pairs)


def test_pairs_of_a_list_share_no_text_and_keep_their_order() -> None:
    pairs = one_pair_a_list(LISTS, 3)
    assert len(pairs) == 400
    texts = [text for one in pairs for text in one.responses]
    assert len(set(texts)) == len(texts)
    for one in pairs:
        assert one.ranks == (1, 2) and one.responses[0] < one.responses[1]  # i-0 is best


def test_a_pair_cut_out_of_a_list_has_none_of_its_places() -> None:
    whole = RankedList("", tuple("abcd"), (4, 3, 2, 1), "x", 0, pairs=(Comparison(3, 0),))
    for one in one_pair_a_list([whole], 0):
        (pair,) = one.comparisons()
        assert one.responses[pair.better] > one.responses[pair.worse]


def test_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    calls = []

    def trial(seed: int) -> dict[str, float]:
        calls.append(seed)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {"accuracy": 0.5 + seed}

    with pytest.raises(KeyboardInterrupt):
        run_trials({"a": trial}, range(3), tmp_path, tell=lambda line: None)
    results = run_trials({"a": trial}, range(3), tmp_path, tell=lambda line: None)
    assert calls == [0, 1, 1, 2]
    assert [one["accuracy"] for one in results["a"]] == [0.5, 1.5, 2.5]
    assert json.loads((tmp_path / "a.0.json").read_text())["accuracy"] == 0.5


def test_tables_hold_mean_and_deviation() -> None:
    results = {"a": [{"x": 1.0}, {"x": 2.0}], "b": [{"x": 2.0, "y": 150.0}, {"x": 4.0, "y": 151.0}]}
    rows = table(results, ("x", "y")).splitlines()
    assert rows[2:] == ["| a | 1.500 ± 0.707 |  |", "| b | 3.000 ± 1.414 | 150 ± 1 |"]
    mean, error = gain(results["b"], results["a"], "x")
    assert mean == 1.5 and error == pytest.approx(0.5)
    assert cell([0.25]) == "0.250"
