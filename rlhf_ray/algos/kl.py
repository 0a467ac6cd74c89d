"""KL divergence to a reference: estimators, sums, the adaptive coefficient, and an alarm.

Shapes: B responses, T response positions (padded).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_ray.algos.checks import check_choice, select_tokens, widen

KL_KINDS = ("k1", "k2", "k3")


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """Per-token estimate of KL(π ‖ π_ref) from tokens sampled from π.

    With lr = log π − log π_ref:  k1 = lr,  k2 = lr²/2,  k3 = exp(−lr) − 1 + lr.
    k1 is unbiased and belongs in the reward; k3 is unbiased, never negative and belongs in a loss;
    k2 is biased with low variance. (Schulman 2020, "Approximating KL divergence", a note without
    numbered equations; k3 is eq. 4 of Shao et al. 2024.)

    Args:
        logprobs, ref_logprobs: floating point, one shape, log-probabilities of the same tokens.
        kind: "k1", "k2" or "k3".

    Returns: the same shape, in the compute dtype. No mask is applied: see `response_kl`.
    Raises: ValueError for another kind, shape or dtype.
    """
    check_choice("kind", kind, KL_KINDS)
    logprobs, ref_logprobs = widen(logprobs=logprobs, ref_logprobs=ref_logprobs)
    log_ratio = logprobs - ref_logprobs
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio


def response_kl(
    logprobs_BT: Tensor, ref_logprobs_BT: Tensor, response_mask_BT: Tensor, *, kind: str = "k1"
) -> Tensor:
    """Σ_t kl_t over the unmasked positions of each response: its KL in nats.

    With k1 it is log π(y|x) − log π_ref(y|x), the penalty of Ziegler et al. 2019, eq. 2, and Ouyang
    et al. 2022, eq. 2. RLOO's score is scores_B − β·response_kl; `AdaptiveKL` is updated with the
    mean over responses.

    Args:
        logprobs_BT, ref_logprobs_BT: floating point [B, T], of the sampled tokens.
        response_mask_BT: bool or 0/1 [B, T].
        kind: "k1", "k2" or "k3" (`kl_estimate`).

    Returns: kl_B [B] in the compute dtype.
    Raises: ValueError for a row without an unmasked position, another kind, shape or dtype.
    """
    _, (logprobs_BT, ref_logprobs_BT) = select_tokens(
        response_mask_BT, logprobs_BT=logprobs_BT, ref_logprobs_BT=ref_logprobs_BT
    )
    return kl_estimate(logprobs_BT, ref_logprobs_BT, kind).sum(1)


def negative_kl_alarm(
    mean: float, std: float, responses: int, *, tolerance: float = 0.1
) -> str | None:
    """A message when the mean of Σ_t k1 is too far below 0 to be chance, else None.

    A KL divergence is never negative, so its unbiased estimate may be so by sampling noise alone:
    the alarm is for mean < −max(tolerance, 4·std/sqrt(B)).

    Args:
        mean, std: of Σ_t k1 (`response_kl`) over responses sampled from the policy itself.
        responses: B.
        tolerance: nats below 0 that are let pass whatever the noise.

    Raises: ValueError for no responses.
    """
    if responses < 1:
        raise ValueError(f"responses is {responses}; give the KL of one response at least")
    if math.isfinite(mean) and mean >= -max(tolerance, 4 * std / math.sqrt(responses)):
        return None
    return (
        f"mean KL to the reference is {mean:.3f} nats a response over {responses} responses, which "
        "cannot be: check that the temperature, the tokens and the response mask of the policy's "
        "and the reference's log-probabilities agree, and that dropout is off in both"
    )


class AdaptiveKL:
    """KL coefficient that steers the KL towards a target (Ziegler et al. 2019, section 2.2).

    β ← β·(1 + clip(KL/target − 1, −.2, .2)·n/horizon)

    Args:
        init: β at the start, at least 0.
        target: KL wanted, in nats a response, positive.
        horizon: number of responses over which β moves by a fifth at most, positive.

    Raises: ValueError for a number outside these ranges.
    """

    def __init__(self, init: float, target: float, horizon: float) -> None:
        if not (math.isfinite(init) and init >= 0):
            raise ValueError(f"init is {init}; the KL coefficient must be finite and at least 0")
        if not (target > 0 and horizon > 0):
            raise ValueError(f"target is {target} and horizon {horizon}; both must be positive")
        self.value = float(init)
        self.target = float(target)
        self.horizon = float(horizon)

    @property
    def coef(self) -> float:
        """The coefficient β now, the same as `value`."""
        return self.value

    def update(self, kl: float, n: int) -> float:
        """Takes the mean over n responses of Σ_t k1, in nats; returns the new β.

        Raises: ValueError, β staying as it is, when kl is not finite, n is negative, or β's factor
            would not be positive: that takes 5 horizons or more, and a KL below the target.
        """
        kl = float(kl)
        if not math.isfinite(kl):
            raise ValueError(f"kl is {kl}; log-probabilities upstream are not finite")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        factor = 1 + error * n / self.horizon
        if n < 0 or not factor > 0:
            raise ValueError(
                f"n is {n} and the horizon {self.horizon:g}; with a KL of {kl:g} for a target of "
                f"{self.target:g} the coefficient would be multiplied by {factor:g}: give an n of "
                "0 or more, and a horizon above n/5"
            )
        self.value *= factor
        return self.value

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint has to keep."""
        return {"value": self.value, "target": self.target, "horizon": self.horizon}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes β back. Target and horizon stay those of the config that made this object."""
        self.value = float(state["value"])
