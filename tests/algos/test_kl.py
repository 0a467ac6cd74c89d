"""KL estimators against closed forms, the adaptive coefficient, and the alarm."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.algos.kl import AdaptiveKL, kl_estimate, negative_kl_alarm, response_kl


def test_golden_means():
    log_ratio = torch.tensor([0.1, -0.3, 0.5], dtype=torch.float64)
    ref = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    means = {k: float(kl_estimate(ref + log_ratio, ref, k).mean()) for k in ("k1", "k2", "k3")}
    assert means == pytest.approx({"k1": 0.1, "k2": 0.058333, "k3": 0.053742}, abs=5e-7)


def test_estimators_average_to_the_divergence_of_two_distributions():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    exact = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
    for kind in ("k1", "k3"):
        assert float((p * kl_estimate(p.log(), q.log(), kind)).sum()) == pytest.approx(exact)


@given(lr=st.floats(-20, 20))
def test_k3_is_never_negative_and_exact_near_zero(lr):
    zero = torch.zeros((), dtype=torch.float32)
    k3 = float(kl_estimate(zero + lr, zero, "k3"))
    assert k3 >= 0
    small = torch.tensor(lr * 1e-5, dtype=torch.float64)
    assert float(kl_estimate(small, zero.double(), "k3")) == pytest.approx(
        float(small) ** 2 / 2, rel=1e-3, abs=1e-17
    )


def test_gradient_of_k3_by_finite_differences():
    random = torch.Generator().manual_seed(0)
    ref, logprobs = torch.randn(2, 4, dtype=torch.float64, generator=random)
    logprobs.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, ref, "k3"), logprobs)


def test_response_kl_sums_over_a_response():
    logprobs = torch.tensor([[-1.0, -2.0, -9.0]])
    ref = torch.tensor([[-1.5, -1.0, float("nan")]])
    mask = torch.tensor([[True, True, False]])
    assert response_kl(logprobs, ref, mask).tolist() == [-0.5]


def test_an_unknown_kind_raises():
    with pytest.raises(ValueError, match="kind is 'k4'; choose one of 'k1', 'k2', 'k3'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")
    with pytest.raises(ValueError, match="one shape"):
        kl_estimate(torch.zeros(1), torch.zeros(2), "k1")


def test_adaptive_coefficient_by_hand():
    control = AdaptiveKL(0.2, target=6.0, horizon=10_000)
    assert control.update(12.0, 256) == pytest.approx(0.2 * (1 + 0.2 * 256 / 10_000))
    assert control.update(0.0, 256) == pytest.approx(0.2 * (1 + 0.00512) * (1 - 0.00512))
    before = control.value
    assert control.update(6.6, 500) == pytest.approx(before * (1 + 0.1 * 0.05))
    before = control.value
    assert control.update(6.0, 500) == before == control.coef


def test_adaptive_coefficient_survives_a_checkpoint():
    control = AdaptiveKL(0.2, target=6.0, horizon=100)
    control.update(9.0, 32)
    again = AdaptiveKL(0.5, target=6.0, horizon=100)
    again.load_state_dict(control.state_dict())
    assert again.value == control.value
    assert again.update(3.0, 32) == control.update(3.0, 32)


@pytest.mark.parametrize(("kl", "factor"), [(9.0, 2.2), (6.0, 1.0), (5.4, 0.4)])
def test_adaptive_coefficient_takes_any_number_of_responses_that_leaves_it_positive(kl, factor):
    control = AdaptiveKL(0.2, target=6.0, horizon=100)
    assert control.update(kl, 600) == pytest.approx(0.2 * factor)


def test_adaptive_coefficient_refuses_nonsense():
    control = AdaptiveKL(0.2, target=6.0, horizon=100)
    with pytest.raises(ValueError, match="kl is nan"):
        control.update(float("nan"), 8)
    with pytest.raises(ValueError, match=r"n is 500 .* would be multiplied by 0: .* above n/5"):
        control.update(1.0, 500)
    with pytest.raises(ValueError, match="n is -1"):
        control.update(9.0, -1)
    with pytest.raises(ValueError, match="both must be positive"):
        AdaptiveKL(0.2, target=0.0, horizon=100)
    with pytest.raises(ValueError, match="init is -1"):
        AdaptiveKL(-1, target=1.0, horizon=100)
    assert control.value == 0.2


def test_alarm_tells_a_wrong_sign_from_noise():
    assert negative_kl_alarm(-0.4, 0.9, 64) is None, "within four standard errors"
    assert negative_kl_alarm(-0.5, 0.9, 64) is not None
    assert negative_kl_alarm(-0.05, 0.0, 64) is None
    message = negative_kl_alarm(-3.0, 0.0, 64)
    assert message is not None and "-3.000 nats" in message and "temperature" in message
    assert negative_kl_alarm(float("nan"), 1.0, 2) is not None
    with pytest.raises(ValueError, match="responses is 0"):
        negative_kl_alarm(0.0, 0.0, 0)
