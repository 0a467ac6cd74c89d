"""MetaRM: the objective against plain Python, the step against one written out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algos.metarm import difference_objective, meta_gradient
from rlhf_ray.algos.ranking import pairwise_loss


def objective_by_hand(scores):
    k = len(scores)
    pairs = itertools.combinations(scores, 2)
    return 2 / k**2 * sum(1 / (1 + math.exp(-abs(a - b))) for a, b in pairs)


def test_golden():
    for scores in (torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 1, 2])):
        assert float(difference_objective(scores)) == pytest.approx(0.520648, abs=5e-7)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.lists(st.floats(-20, 20), min_size=2, max_size=5), min_size=1, max_size=4),
    shuffle=st.randoms(use_true_random=False),
)
def test_mean_over_prompts_against_plain_python(groups, shuffle):
    rows = [(score, 7 - 3 * g) for g, group in enumerate(groups) for score in group]
    shuffle.shuffle(rows)
    scores, ids = (torch.tensor(x) for x in zip(*rows, strict=True))
    want = sum(objective_by_hand(group) for group in groups)
    got = difference_objective(scores.double(), ids)
    assert float(got) == pytest.approx(want / len(groups), rel=1e-5)
    summed = difference_objective(scores.double(), ids, denominator=1)
    assert float(summed) == pytest.approx(want, rel=1e-5)


def test_gradient_by_finite_differences():
    scores = torch.tensor([0.1, 1.0, 2.5, -1.0], dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([1, 0, 1, 0])
    assert torch.autograd.gradcheck(lambda s: difference_objective(s, ids), scores)


class Problem:
    """A small reward model, pairs to rank, and responses of a shifted policy."""

    def __init__(self, dropout=0.0):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(6, 1)
        ).double()
        self.chosen, self.rejected = torch.randn(2, 5, 4, dtype=torch.float64)
        self.shifted = torch.randn(6, 4, dtype=torch.float64)
        self.groups = torch.tensor([0, 0, 0, 1, 1, 1])

    def loss(self):
        chosen, rejected = self.model(self.chosen)[:, 0], self.model(self.rejected)[:, 0]
        return pairwise_loss(chosen, rejected).mean()

    def objective(self):
        return difference_objective(self.model(self.shifted)[:, 0], self.groups)

    def descend(self):
        loss = self.loss()
        loss.backward()
        return loss

    def ascend(self):
        objective = self.objective()
        objective.backward()
        return objective

    def parameters(self):
        return torch.nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()

    def meta_gradient(self, eta):
        return meta_gradient(
            self.model.parameters(), ascend=self.ascend, descend=self.descend, eta=eta
        )


def test_the_gradient_is_taken_at_the_shifted_point_and_left_at_the_origin():
    eta = 0.7
    problem, reference = Problem(), Problem()
    origin = problem.parameters()
    loss, objective = problem.meta_gradient(eta)
    assert torch.equal(problem.parameters(), origin)

    parameters = list(reference.model.parameters())
    start = reference.objective()
    uphill = torch.autograd.grad(start, parameters)
    with torch.no_grad():
        for p, g in zip(parameters, uphill, strict=True):
            p += eta * g
    shifted_loss = reference.loss()
    want = torch.autograd.grad(shifted_loss, parameters)
    assert reference.objective() > start
    assert objective.item() == start.item() and loss.item() == shifted_loss.item()
    assert not loss.requires_grad
    for p, g in zip(problem.model.parameters(), want, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-14)


def test_a_step_moves_the_origin_against_the_gradient_at_the_shifted_point():
    problem = Problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    origin = problem.parameters()
    problem.meta_gradient(0.5)
    gradient = torch.cat([p.grad.flatten() for p in problem.model.parameters()])
    optimizer.step()
    torch.testing.assert_close(problem.parameters(), origin - 0.1 * gradient)


def test_eta_zero_is_a_plain_step_bit_for_bit_dropout_included():
    meta, plain = Problem(dropout=0.3), Problem(dropout=0.3)
    optimizers = [torch.optim.AdamW(p.model.parameters(), lr=0.01) for p in (meta, plain)]
    for step in range(3):
        torch.manual_seed(step)
        _, objective = meta.meta_gradient(0.0)
        optimizers[0].step()
        torch.manual_seed(step)
        optimizers[1].zero_grad()
        plain.descend()
        optimizers[1].step()
        assert objective is None
        assert torch.equal(meta.parameters(), plain.parameters())


def test_a_tiny_eta_is_nearly_a_plain_step():
    meta, plain = Problem(), Problem()
    meta.meta_gradient(1e-9)
    plain.descend()
    for p, q in zip(meta.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-9)


def test_frozen_parameters_stay_and_leftover_gradients_are_dropped():
    problem = Problem()
    first = problem.model[0].weight.requires_grad_(False)
    last = problem.model[3].weight
    last.grad = torch.full_like(last, 1e6)
    before = first.clone()
    problem.meta_gradient(0.5)
    assert torch.equal(first, before) and first.grad is None
    assert last.grad.abs().max() < 10


def test_parameters_return_when_the_loss_raises():
    problem = Problem()
    origin = problem.parameters()

    def broken():
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        meta_gradient(problem.model.parameters(), ascend=problem.ascend, descend=broken, eta=1.0)
    assert torch.equal(problem.parameters(), origin)


def test_nonsense_raises():
    problem = Problem()
    with pytest.raises(ValueError, match="eta is -1"):
        problem.meta_gradient(-1.0)
    with pytest.raises(ValueError, match="for 0 trainable parameters"):
        meta_gradient([], ascend=problem.ascend, descend=problem.descend, eta=0.1)
    with pytest.raises(ValueError, match=r"group\(s\) \[3\] hold one response only"):
        difference_objective(torch.zeros(3), torch.tensor([1, 3, 1]))
    with pytest.raises(ValueError, match=r"scores_N has dtype torch\.bool"):
        difference_objective(torch.tensor([True, False]))
