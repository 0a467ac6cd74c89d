"""SimCSE and SwAV against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_ray.algos.contrastive import (
    difference_features,
    simcse_loss,
    sinkhorn,
    swav_loss,
)


def arrays(n=6, d=5, k=4):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(n, d))
    return first, first + 0.3 * rng.normal(size=(n, d)), rng.normal(size=(k, d))


def log_softmax(x):
    return x - np.logaddexp.reduce(x, axis=1, keepdims=True)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def sinkhorn_by_hand(scores, epsilon, iterations):
    """As the paper's listing: on the exponentials, prototypes in rows."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    prototypes, features = q.shape
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True) * prototypes
        q /= q.sum(0, keepdims=True) * features
    return (q * features).T


def test_simcse_against_numpy():
    first, second, _ = arrays()
    cosines = unit(first) @ unit(second).T
    want = -np.diag(log_softmax(cosines / 0.05))
    loss, diagnostics = simcse_loss(torch.tensor(first), torch.tensor(second))
    assert float(loss) == pytest.approx(want.mean())
    assert float(diagnostics["terms"]) == 6
    assert float(diagnostics["recognised"]) == (cosines.argmax(1) == np.arange(6)).sum()
    summed, _ = simcse_loss(torch.tensor(first), torch.tensor(second), denominator=1)
    assert float(summed) == pytest.approx(want.sum())


def test_swav_against_numpy():
    first, second, prototypes = arrays()
    scores, other = (unit(x) @ unit(prototypes).T for x in (first, second))
    codes, other_codes = (sinkhorn_by_hand(x, 0.05, 3) for x in (scores, other))
    want = -(other_codes * log_softmax(scores / 0.1)).sum(1)
    want -= (codes * log_softmax(other / 0.1)).sum(1)
    loss, diagnostics = swav_loss(*(torch.tensor(x) for x in (first, second, prototypes)))
    assert float(loss) == pytest.approx(want.mean())
    assert float(diagnostics["agreed"]) == (codes.argmax(1) == other_codes.argmax(1)).sum()


def test_sinkhorn_against_numpy_and_its_balance():
    scores = np.random.default_rng(1).uniform(-1, 1, size=(40, 8))
    codes = sinkhorn(torch.tensor(scores))
    np.testing.assert_allclose(codes.numpy(), sinkhorn_by_hand(scores, 0.05, 3), rtol=1e-9)
    many = sinkhorn(torch.tensor(scores), iterations=500)
    torch.testing.assert_close(many.sum(1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(many.sum(0), torch.full((8,), 5.0, dtype=torch.float64))


def test_sinkhorn_does_not_overflow():
    codes = sinkhorn(torch.tensor([[900.0, -900.0], [-900.0, 900.0]]))
    assert codes.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_codes_carry_no_gradient_and_the_rest_does():
    first, second, prototypes = (torch.tensor(x, requires_grad=True) for x in arrays())
    assert not sinkhorn(first).requires_grad
    swav_loss(first, second, prototypes)[0].backward()
    assert all(x.grad.abs().sum() > 0 for x in (first, second, prototypes))


def test_gradient_of_simcse_by_finite_differences():
    first, second, _ = (torch.tensor(x, requires_grad=True) for x in arrays(3, 4))
    assert torch.autograd.gradcheck(
        lambda a, b: simcse_loss(a, b, temperature=0.5)[0], (first, second)
    )


@pytest.mark.parametrize("loss", ["simcse", "swav"])
def test_permuting_rows_changes_nothing(loss):
    first, second, prototypes = (torch.tensor(x) for x in arrays())
    order = torch.tensor([4, 2, 0, 5, 1, 3])

    def value(a, b):
        return simcse_loss(a, b)[0] if loss == "simcse" else swav_loss(a, b, prototypes)[0]

    torch.testing.assert_close(value(first[order], second[order]), value(first, second))


def test_features_of_differences():
    chosen, rejected = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 1.0]])
    assert difference_features(chosen, rejected).tolist() == [[-4, 1], [4, -1]]


def test_low_precision_in_float32_out():
    first, second, prototypes = (torch.tensor(x, dtype=torch.bfloat16) for x in arrays())
    assert difference_features(first, second).dtype == torch.float32
    assert simcse_loss(first, second)[0].dtype == torch.float32
    assert swav_loss(first, second, prototypes)[0].dtype == torch.float32


def test_nonsense_raises():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="temperature is 0"):
        simcse_loss(x, x, temperature=0)
    with pytest.raises(ValueError, match="for 0 features"):
        simcse_loss(x[:0], x[:0])
    with pytest.raises(ValueError, match=r"augmented_ND has shape \(1, 3\)"):
        simcse_loss(x, x[:1])
    with pytest.raises(ValueError, match="prototypes_KD has 4 columns and the features 3"):
        swav_loss(x, x, torch.ones(2, 4))
    with pytest.raises(ValueError, match="iterations is 0"):
        sinkhorn(x, iterations=0)
    with pytest.raises(ValueError, match=r"2 dimension\(s\) are needed"):
        difference_features(x[0], x[0])
