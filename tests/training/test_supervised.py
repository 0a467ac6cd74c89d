"""Optimizer, schedule, batches and progress of the supervised loops."""

import copy
import math
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rlhf_ray.training.supervised import (
    Best,
    MasterAdamW,
    Progress,
    Schedule,
    StepSums,
    epochs_of,
    fill,
    fit,
)


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def test_the_schedule_by_hand() -> None:
    schedule = Schedule(peak=2.0, total=11, warmup=0.1, floor=0.1)
    expected = [2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 8))) for i in range(9)]
    rates = [schedule(step) for step in range(11)]
    assert rates[:2] == pytest.approx([1.0, 2.0])  # ceil(1.1) = 2 steps of warm-up
    assert rates[2:] == pytest.approx(expected)
    assert rates[-1] == pytest.approx(0.2)
    assert Schedule(peak=1.0, total=1)(0) == 1.0


def test_in_float32_it_is_torchs_adamw_after_clipping() -> None:
    ours, theirs = small(), small()
    optimizer = MasterAdamW(ours, dtype=torch.float32, weight_decay=0.1, max_grad_norm=0.5)
    assert optimizer.compute is ours
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99), fused=False)
    for step in range(4):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        optimizer.backward(ours(x).square().sum())
        norm = optimizer.step(0.01)
        theirs(x).square().sum().backward()
        expected = math.sqrt(sum(float(p.grad.square().sum()) for p in theirs.parameters()))
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        reference.step()
        reference.zero_grad()
        assert norm == pytest.approx(expected, rel=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_bfloat16_copies_follow_float32_masters() -> None:
    model = small()
    optimizer = MasterAdamW(model, dtype=torch.bfloat16)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(5, 6).bfloat16()
    for _ in range(3):
        optimizer.backward(optimizer.compute(x).float().square().mean())
        optimizer.step(1e-5)  # less than a bfloat16 weight can show: only masters can add it up
    for name, master in model.state_dict().items():
        assert master.dtype == torch.float32
        assert 5e-6 < (master - before[name]).abs().max() < 5e-5
        assert torch.equal(optimizer.compute.state_dict()[name], master.bfloat16())


def test_gradients_of_micro_batches_add_up_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False)
    optimizer = MasterAdamW(model, dtype=torch.bfloat16, max_grad_norm=1e9)
    optimizer.backward(optimizer.compute(torch.tensor([[256.0]]).bfloat16()).sum())
    for _ in range(4):
        optimizer.backward(optimizer.compute(torch.tensor([[0.5]]).bfloat16()).sum())
    assert optimizer.step(0.0) == 258.0  # bfloat16 would have stayed at 256


def test_best_keeps_the_highest_and_the_later_of_equals() -> None:
    model, best = small(), Best()
    weights = []
    for epoch, score in enumerate([0.5, 0.7, 0.7, 0.6, float("nan")], 1):
        with torch.no_grad():
            model[0].bias.fill_(epoch)
        weights.append(best.offer(score, epoch, model))
    assert weights == [True, True, True, False, False]
    best.restore(model)
    assert model[0].bias[0] == 3 and best.epoch == 3


@given(
    st.lists(st.integers(1, 30), max_size=30), st.integers(1, 50), st.randoms(use_true_random=False)
)
def test_fill_keeps_order_and_budget(sizes: list[int], budget: int, random) -> None:
    order = list(range(len(sizes)))
    random.shuffle(order)
    batches = fill(order, sizes, budget)
    assert [row for batch in batches for row in batch] == order
    used = [sum(sizes[row] for row in batch) for batch in batches]
    assert all(size <= budget or len(batch) == 1 for size, batch in zip(used, batches, strict=True))
    for size, following in zip(used, batches[1:], strict=False):
        assert size + sizes[following[0]] > budget


def test_epochs_differ_and_a_fraction_is_cut() -> None:
    def batches(rng: np.random.Generator) -> list[list[int]]:
        return fill(rng.permutation(40).tolist(), np.ones(40), 4)

    epochs = epochs_of(batches, 2.5, seed=3)
    assert [len(epoch) for epoch in epochs] == [10, 10, 5]
    assert all(sorted(chain(*epoch)) == list(range(40)) for epoch in epochs[:2])
    assert epochs[0] != epochs[1]
    assert epochs == epochs_of(batches, 2.5, seed=3) != epochs_of(batches, 2.5, seed=4)


def test_means_are_those_of_the_window() -> None:
    progress = Progress(10, window=2)
    rows = [
        progress.row(step, StepSums({"loss": (total, count)}, {"tokens": 7.0}))
        for step, (total, count) in enumerate([(90.0, 1.0), (2.0, 1.0), (4.0, 2.0)], 1)
    ]
    assert [row["loss"] for row in rows] == [90.0, 46.0, 2.0]
    assert rows[-1]["step"] == 3 and rows[-1]["total"] == 10
    assert rows[-1]["tokens_per_s"] > 0 and rows[-1]["eta_s"] > 0


def fitted(losses: list[float]) -> tuple[list[dict], nn.Module]:
    """Two steps an epoch; the bias counts steps; `losses` are the scores after each epoch."""
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.bias)
    optimizer = MasterAdamW(model, dtype=torch.float32)
    scores = iter(losses)

    def run_step(rows: list[int]) -> StepSums:
        optimizer.backward((model(torch.zeros(1, 1)) * rows[0]).sum())
        with torch.no_grad():
            model.bias += 1
        return StepSums({"loss": (1.0, 1.0)}, {})

    def evaluate() -> tuple[float, dict[str, float]]:
        score = next(scores)
        return score, {"heldout/score": score}

    epochs = [[[1], [1]] for _ in losses]
    schedule = Schedule(1e-9, 2 * len(losses))
    rows = list(fit(optimizer, epochs, run_step, schedule=schedule, evaluate=evaluate))
    return rows, model


def test_fit_evaluates_each_epoch_and_ends_with_the_best() -> None:
    rows, model = fitted([0.2, 0.9, 0.4])
    assert [row.get("heldout/score") for row in rows] == [None, 0.2, None, 0.9, None, 0.4]
    assert [row["epoch"] for row in rows] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert model.bias.item() == pytest.approx(4, abs=1e-3)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    model = nn.Linear(1, 1)
    optimizer = MasterAdamW(model, dtype=torch.float32)

    def run_step(rows: list[int]) -> StepSums:
        optimizer.backward(model(torch.tensor([[float("inf")]])).sum() * 0)
        return StepSums({}, {})

    steps = fit(optimizer, [[[0]]], run_step, schedule=Schedule(0.5, 1), evaluate=lambda: (0.0, {}))
    with pytest.raises(ValueError, match=r"gradient is nan at step 1 of 1.*0\.5: lower"):
        next(steps)
