"""Choosing pairs in doubt and changing their labels."""

from __future__ import annotations

import pytest
import torch

from rlhf_ray.algos.ranking import pairwise_loss, preference_strength
from rlhf_ray.algos.remedies import (
    smoothed_targets,
    soft_targets,
    strength_margins,
    weakest,
)

STRENGTH = torch.tensor([0.5, -2.0, 0.0, 3.0, -0.1])


def test_the_weakest_by_fraction_and_by_threshold():
    assert weakest(STRENGTH, fraction=0.2).tolist() == [False, True, False, False, False]
    assert weakest(STRENGTH, fraction=0.6).tolist() == [False, True, True, False, True]
    assert weakest(STRENGTH, threshold=0.0).tolist() == [False, True, False, False, True]
    assert not weakest(STRENGTH, fraction=0.0).any()
    assert weakest(STRENGTH, fraction=1.0).all()
    assert int(weakest(torch.zeros(10), fraction=0.3).sum()) == 3


def test_flipped_labels_are_found():
    """Ten models that see the truth with noise; two of eight labels are wrong."""
    torch.manual_seed(0)
    truth = torch.tensor([2.0, -2.0, 3.0, 1.5, -1.5, 2.5, 2.0, 1.0])
    gaps_MP = truth + 0.3 * torch.randn(10, 8)
    mean_P, _ = preference_strength(gaps_MP)
    assert torch.equal(weakest(mean_P, fraction=0.25), truth < 0)


def test_targets_and_margins_feed_the_pairwise_loss():
    gaps_MP = torch.tensor([[0.0, 100.0, -100.0], [0.0, 100.0, 100.0]])
    assert soft_targets(gaps_MP).tolist() == [0.5, 1.0, 0.5]
    target = smoothed_targets(torch.tensor([True, False]), label_smoothing=0.1)
    assert target.tolist() == pytest.approx([0.9, 1.0])
    scores, zeros = torch.tensor([1.5, 1.5]), torch.zeros(2)
    loss = pairwise_loss(scores, zeros, target=target)
    assert loss.tolist() == pytest.approx([0.351413, 0.201413], abs=1e-6)
    margins = strength_margins(STRENGTH, scale=2.0, limit=1.5)
    assert margins.tolist() == pytest.approx([1.0, -1.5, 0.0, 1.5, -0.2])
    assert pairwise_loss(STRENGTH, STRENGTH, margin=margins).argmax() == 3


def test_nonsense_raises():
    with pytest.raises(ValueError, match="give exactly one"):
        weakest(STRENGTH)
    with pytest.raises(ValueError, match="give exactly one"):
        weakest(STRENGTH, fraction=0.1, threshold=0.0)
    with pytest.raises(ValueError, match="fraction is 2"):
        weakest(STRENGTH, fraction=2)
    with pytest.raises(ValueError, match="strength_P holds NaN"):
        weakest(torch.tensor([float("nan")]), fraction=0.5)
    with pytest.raises(ValueError, match=r"pass weak_P\.bool"):
        smoothed_targets(STRENGTH, label_smoothing=0.1)
    with pytest.raises(ValueError, match="limit is 0"):
        strength_margins(STRENGTH, limit=0.0)
    with pytest.raises(ValueError, match="gaps_MP has no rows"):
        soft_targets(torch.zeros(0, 2))
