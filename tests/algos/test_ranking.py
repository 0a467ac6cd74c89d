"""Reward-model losses against plain Python over every pair of every list."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algos.ranked_pairs import Pairs
from rlhf_ray.algos.ranking import (
    FORMS,
    comparison_loss,
    count_ranked_terms,
    pairwise_loss,
    preference_strength,
    ranked_list_loss,
)

few = settings(max_examples=60, deadline=None)


@st.composite
def ranked_lists(draw):
    """(scores, list ids, ranks): ragged lists of one to six, scattered, ranks with ties."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    names = draw(
        st.lists(
            st.integers(-(2**40), 2**40), min_size=len(sizes), max_size=len(sizes), unique=True
        )
    )
    ids = draw(st.permutations([n for n, k in zip(names, sizes, strict=True) for _ in range(k)]))
    count = len(ids)
    scores = draw(st.lists(st.floats(-30, 30, width=32), min_size=count, max_size=count))
    ranks = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    return scores, list(ids), ranks


def gaps_by_list(scores, ids, ranks):
    """list id -> score gaps better − worse of all its pairs of unequal rank."""
    members = defaultdict(list)
    for i, name in enumerate(ids):
        members[name].append(i)
    gaps = {}
    for name, rows in members.items():
        gaps[name] = []
        for i, j in itertools.combinations(rows, 2):
            order = 1 if ranks is None else (ranks[i] < ranks[j]) - (ranks[i] > ranks[j])
            if order:
                gaps[name].append(order * (scores[i] - scores[j]))
    return gaps


def softplus(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


BY_HAND = {
    "logsigmoid": lambda d: softplus(-d),
    "logexp": lambda d: softplus(-d),
    "sigmoid": lambda d: -1 / (1 + math.exp(-d)),
}


@pytest.mark.parametrize("form", FORMS)
@few
@given(lists=ranked_lists(), with_ranks=st.booleans())
def test_ranked_lists_against_plain_python(form, lists, with_ranks):
    scores, ids, ranks = lists
    ranks = ranks if with_ranks else None
    gaps = [g for g in gaps_by_list(scores, ids, ranks).values() if g]
    losses = [[BY_HAND[form](d) for d in g] for g in gaps]
    flat = [x for loss in losses for x in loss]
    by_list = sum(sum(x) / len(x) for x in losses) / len(losses) if losses else 0.0
    by_pair = sum(flat) / len(flat) if flat else 0.0
    s, i = torch.tensor(scores, dtype=torch.float64), torch.tensor(ids)
    r = None if ranks is None else torch.tensor(ranks)
    assert float(ranked_list_loss(s, i, ranks_N=r, form=form)) == pytest.approx(by_list)
    got = ranked_list_loss(s, i, ranks_N=r, form=form, reduction="pair")
    assert float(got) == pytest.approx(by_pair)
    counted = tuple(int(n) for n in count_ranked_terms(i, ranks_N=r))
    assert counted == (len(losses), len(flat))


@pytest.mark.parametrize("reduction", ["list", "pair"])
@few
@given(lists=ranked_lists(), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter_when_ranks_are_given(reduction, lists, shuffle):
    s, i, r = (torch.tensor(x) for x in lists)
    order = list(range(len(s)))
    shuffle.shuffle(order)
    one = ranked_list_loss(s.double(), i, ranks_N=r, reduction=reduction)
    other = ranked_list_loss(s.double()[order], i[order], ranks_N=r[order], reduction=reduction)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("reduction", ["list", "pair"])
@few
@given(lists=ranked_lists())
def test_one_list_at_a_time_adds_up_to_the_whole(reduction, lists):
    s, i, r = (torch.tensor(x) for x in lists)
    s = s.double().requires_grad_()
    terms = count_ranked_terms(i, ranks_N=r)[reduction == "pair"]
    whole = ranked_list_loss(s, i, ranks_N=r, reduction=reduction)
    parts = [
        ranked_list_loss(
            s[i == n], i[i == n], ranks_N=r[i == n], reduction=reduction,
            denominator=max(int(terms), 1),
        )
        for n in i.unique()
    ]  # fmt: skip
    torch.testing.assert_close(sum(parts), whole)
    (want,) = torch.autograd.grad(whole, s)
    (got,) = torch.autograd.grad(sum(parts), s)
    torch.testing.assert_close(got, want)


def test_golden_lists():
    four, ids = torch.tensor([2.0, 1.0, 0.0, -1.0]), torch.zeros(4, dtype=torch.long)
    assert float(ranked_list_loss(four, ids)) == pytest.approx(0.207038, abs=5e-7)
    assert float(ranked_list_loss(four.long(), ids)) == pytest.approx(0.207038, abs=5e-7)
    assert float(ranked_list_loss(four, ids, form="logexp")) == pytest.approx(0.207038, abs=5e-7)
    assert float(ranked_list_loss(four, ids, form="sigmoid")) == pytest.approx(-0.817891, abs=5e-7)
    both = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0, -1.0])
    ids = torch.tensor([8, 8, 3, 3, 3, 3])
    assert float(ranked_list_loss(both, ids)) == pytest.approx(0.260150, abs=5e-7)
    assert float(ranked_list_loss(both, ids, reduction="pair")) == pytest.approx(0.222213, abs=5e-7)


def test_golden_pairs():
    def at(gap, **options):
        return float(pairwise_loss(torch.tensor([gap]), torch.zeros(1), **options))

    assert at(1.5, margin=0.7) == pytest.approx(0.371101, abs=5e-7)
    assert at(1.5, label_smoothing=0.1) == pytest.approx(0.351413, abs=5e-7)
    assert at(1.5, target=0.9) == pytest.approx(0.351413, abs=5e-7)
    assert at(0.0) == pytest.approx(math.log(2))


@few
@given(gap=st.floats(-30, 30), margin=st.floats(-3, 3), soft=st.floats(0, 1))
def test_pairs_against_plain_python(gap, margin, soft):
    chosen = torch.tensor([gap, gap], dtype=torch.float64)
    zeros = torch.zeros_like(chosen)
    d = gap - margin
    mixed = soft * softplus(-d) + (1 - soft) * softplus(d)
    for margins in (margin, torch.full((2,), margin, dtype=torch.float64)):
        plain = pairwise_loss(chosen, zeros, margin=margins)
        assert plain.tolist() == pytest.approx([softplus(-d)] * 2)
        for target in (soft, torch.full((2,), soft, dtype=torch.float64)):
            got = pairwise_loss(chosen, zeros, margin=margins, target=target)
            assert got.tolist() == pytest.approx([mixed] * 2)
    smoothed = pairwise_loss(chosen, zeros, margin=margin, label_smoothing=1 - soft)
    assert smoothed.tolist() == pytest.approx([mixed] * 2)


def test_nothing_underflows_at_minus_200():
    for loss in (
        lambda x: pairwise_loss(x, torch.zeros(1)).sum(),
        lambda x: pairwise_loss(x, torch.zeros(1), label_smoothing=0.0, target=1.0).sum(),
        lambda x: ranked_list_loss(torch.cat([x, torch.zeros(1)]), torch.tensor([0, 0])),
        lambda x: ranked_list_loss(
            torch.cat([x, torch.zeros(1)]), torch.tensor([0, 0]), form="logexp"
        ),
    ):
        x = torch.tensor([-200.0], requires_grad=True)
        value = loss(x)
        value.backward()
        assert value.item() == 200.0
        assert float(x.grad) == -1.0


def test_the_margin_stands_inside_and_so_changes_the_gradient():
    slopes = []
    for margin in (0.0, 2.0):
        chosen = torch.tensor([1.0], requires_grad=True)
        pairwise_loss(chosen, torch.zeros(1), margin=margin).sum().backward()
        slopes.append(float(chosen.grad))
    assert slopes == pytest.approx([-1 / (1 + math.e), -1 / (1 + math.exp(-1))])


def test_gradients_by_finite_differences():
    random = torch.Generator().manual_seed(0)
    scores, other = torch.randn(2, 7, dtype=torch.float64, generator=random)
    scores.requires_grad_()
    ids, ranks = torch.tensor([5, 2, 5, 5, 2, 5, 9]), torch.tensor([0, 1, 1, 2, 0, 1, 0])
    for form in FORMS:
        for reduction in ("list", "pair"):
            assert torch.autograd.gradcheck(
                lambda s, f=form, r=reduction: ranked_list_loss(
                    s, ids, ranks_N=ranks, form=f, reduction=r
                ),
                scores,
            )
    assert torch.autograd.gradcheck(
        lambda s: pairwise_loss(s, other, margin=0.3, label_smoothing=0.2), scores
    )


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 2),
                       st.floats(-2, 2), st.floats(0, 1)), max_size=8),
    st.sampled_from(["list", "pair"]),
    st.sampled_from(["logsigmoid", "sigmoid"]),
)  # fmt: skip
def test_comparisons_with_margins_and_targets_against_plain_python(rows, reduction, form):
    scores = [0.3, -1.2, 2.0, 0.7]
    first = [a for a, *_ in rows]
    second = [(a + step) % 4 for a, step, *_ in rows]
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]
    margin, target = columns[3:] if rows else (torch.zeros(0).double(),) * 2
    pairs = Pairs(
        torch.tensor(first, dtype=torch.long),
        torch.tensor(second, dtype=torch.long),
        torch.tensor([one[2] for one in rows], dtype=torch.long),
        3,
    )
    sigma = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    cost = (lambda x: -sigma(x)) if form == "sigmoid" else (lambda x: -math.log(sigma(x)))
    by_list = defaultdict(list)
    for a, b, (_, _, place, m, q) in zip(first, second, rows, strict=True):
        d = scores[a] - scores[b] - m
        by_list[place].append(q * cost(d) + (1 - q) * cost(-d))
    every = [x for losses in by_list.values() for x in losses]
    means = [sum(losses) / len(losses) for losses in by_list.values()]
    wanted = means if reduction == "list" else every
    found = comparison_loss(
        torch.tensor(scores, dtype=torch.float64),
        pairs,
        reduction=reduction,
        form=form,
        margin=margin,
        target=target,
    )
    assert found.item() == pytest.approx(sum(wanted) / len(wanted) if wanted else 0.0, abs=1e-9)


def test_gradients_of_comparisons_by_finite_differences():
    pairs = Pairs(torch.tensor([0, 2, 1]), torch.tensor([1, 0, 2]), torch.tensor([0, 0, 1]), 2)
    margin_P = torch.tensor([0.5, -0.3, 1.0], dtype=torch.float64)
    target_P = torch.tensor([0.9, 1.0, 0.4], dtype=torch.float64)
    scores_N = torch.tensor([0.2, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
    for form, reduction in itertools.product(("logsigmoid", "logexp", "sigmoid"), ("list", "pair")):
        options = {"form": form, "reduction": reduction, "margin": margin_P, "target": target_P}
        assert torch.autograd.gradcheck(
            lambda s, o=options: comparison_loss(s, pairs, **o), scores_N
        )


def test_a_list_without_pairs_counts_nowhere():
    scores = torch.tensor([1.0, 0.0, 5.0, 3.0, 4.0], requires_grad=True)
    ids, ranks = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([1, 2, 1, 7, 7])
    loss = ranked_list_loss(scores, ids, ranks_N=ranks)
    assert loss.item() == pytest.approx(softplus(-1))
    loss.backward()
    assert scores.grad[2:].tolist() == [0, 0, 0]
    nothing = ranked_list_loss(scores[2:], ids[2:], ranks_N=ranks[2:])
    assert nothing.item() == 0
    nothing.backward()


def test_long_lists_give_all_their_pairs():
    scores = torch.linspace(3, -3, 300, dtype=torch.float64)
    got = ranked_list_loss(scores, torch.zeros(300, dtype=torch.long), reduction="pair")
    gaps = [float(a - b) for a, b in itertools.combinations(scores, 2)]
    assert float(got) == pytest.approx(sum(softplus(-d) for d in gaps) / len(gaps))


def test_low_precision_in_float32_out():
    half = torch.tensor([1.0, 0.0], dtype=torch.bfloat16)
    assert pairwise_loss(half, half).dtype == torch.float32
    assert ranked_list_loss(half, torch.tensor([0, 0])).dtype == torch.float32
    assert preference_strength(half[None])[0].dtype == torch.float32


def test_preference_strength_is_numpys_mean_and_std():
    gaps = np.random.default_rng(0).normal(size=(10, 7))
    mean, std = preference_strength(torch.tensor(gaps))
    np.testing.assert_allclose(mean.numpy(), gaps.mean(0))
    np.testing.assert_allclose(std.numpy(), gaps.std(0, ddof=0))
    assert preference_strength(torch.ones(1, 3))[1].tolist() == [0, 0, 0]


def test_nonsense_raises():
    x, ids = torch.zeros(2), torch.tensor([0, 0])
    with pytest.raises(ValueError, match="give one of them"):
        pairwise_loss(x, x, label_smoothing=0.1, target=0.9)
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.5"):
        pairwise_loss(x, x, label_smoothing=1.5)
    with pytest.raises(ValueError, match="target lies outside"):
        pairwise_loss(x, x, target=torch.tensor([0.5, 1.2]))
    with pytest.raises(ValueError, match=r"margin has shape \(3,\) for 2 pairs"):
        pairwise_loss(x, x, margin=torch.zeros(3))
    with pytest.raises(ValueError, match="margin is not finite"):
        pairwise_loss(x, x, margin=torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match=r"rejected_P has shape \(3,\)"):
        pairwise_loss(x, torch.zeros(3))
    with pytest.raises(ValueError, match=r"scores_N has dtype torch\.bool"):
        ranked_list_loss(ids == 0, ids)
    with pytest.raises(ValueError, match="reduction is 'mean'"):
        ranked_list_loss(x, ids, reduction="mean")
    with pytest.raises(ValueError, match="form is 'hinge'"):
        ranked_list_loss(x, ids, form="hinge")
    with pytest.raises(ValueError, match="give one rank a completion"):
        ranked_list_loss(x, ids, ranks_N=torch.zeros(3))
    with pytest.raises(ValueError, match="NaN or inf"):
        ranked_list_loss(x, ids, ranks_N=torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="ids are integers"):
        ranked_list_loss(x, torch.zeros(2))
    with pytest.raises(ValueError, match="denominator is -1"):
        ranked_list_loss(x, ids, denominator=-1)
    with pytest.raises(ValueError, match="gaps_MP has no rows"):
        preference_strength(torch.zeros(0, 3))


def test_a_share_of_nothing_costs_nothing_however_large_the_loss():
    better, worse = torch.tensor([torch.inf, 3.0]), torch.zeros(2)
    target = torch.tensor([1.0, 1.0])
    assert pairwise_loss(better, worse, target=target).tolist() == pytest.approx([0.0, 0.04858735])
    worst = pairwise_loss(-better, worse, target=1 - target)
    assert worst.tolist() == pytest.approx([0.0, 0.04858735])
