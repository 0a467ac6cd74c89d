"""Contrastive losses for reward models (Wang et al. 2024, arXiv 2401.06080, section 3.1).

Added to the ranking loss: total = L_rm + β·L_cl. The two inputs are the features of the same texts
(H = {f_c, f_r}), or the differences of the pairs, under two different dropout masks. Both losses
compare the elements of a batch with each other, so unlike the other losses they do depend on how a
batch is split.
Shapes: P pairs, N features (2P), D their size, K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf_ray.algos.checks import Denominator, check_floating, check_rank, divide, widen


def difference_features(chosen_PD: Tensor, rejected_PD: Tensor) -> Tensor:
    """H = {f_c − f_r, f_r − f_c}: the differences of each pair (Wang et al. 2024, section 3.1).

    Args:
        chosen_PD, rejected_PD: floating point [P, D].

    Returns: [2P, D] in the compute dtype, f_c − f_r of all pairs first.
    Raises: ValueError for another rank, shape or dtype.
    """
    chosen_PD, rejected_PD = widen(chosen_PD=chosen_PD, rejected_PD=rejected_PD)
    check_rank(2, chosen_PD=chosen_PD)
    difference_PD = chosen_PD - rejected_PD
    return torch.cat([difference_PD, -difference_PD])


def simcse_loss(
    features_ND: Tensor,
    augmented_ND: Tensor,
    *,
    temperature: float = 0.05,
    denominator: Denominator = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Each feature is to recognise its own other view among all of the batch (eq. 9).

    ℓ_i = −log( exp(cos(h_i, h'_i)/τ) / Σ_j exp(cos(h_i, h'_j)/τ) );  loss = Σ ℓ_i / denominator.
    (Gao et al. 2021, eq. 4.)

    Args:
        features_ND, augmented_ND: floating point [N, D], the two views.
        temperature: τ.
        denominator: by default N.

    Returns: (loss, diagnostics): `recognised` (features nearest to their own view) and `terms`.
    Raises: ValueError for a temperature that is not positive, no features, another rank, shape or
        dtype.
    """
    features_ND, augmented_ND = _views(features_ND, augmented_ND, temperature)
    logits_NN = F.normalize(features_ND, dim=1) @ F.normalize(augmented_ND, dim=1).T / temperature
    own_N = torch.arange(len(logits_NN), device=logits_NN.device)
    terms = own_N.new_tensor(len(own_N))
    loss = divide(F.cross_entropy(logits_NN, own_N, reduction="sum"), denominator, terms)
    recognised = (logits_NN.detach().argmax(1) == own_N).sum()
    return loss, {"recognised": recognised.double(), "terms": terms.double()}


def swav_loss(
    features_ND: Tensor,
    augmented_ND: Tensor,
    prototypes_KD: Tensor,
    *,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    denominator: Denominator = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Each view predicts the cluster of the other (eqs. 7 and 8; Caron et al. 2020, eqs. 1 and 2).

    ℓ(h, h') = ℓ(h, q') + ℓ(h', q),  ℓ(h, q') = −Σ_k q'_k·log p_k,
    p_k = exp(h·c_k/τ) / Σ_j exp(h·c_j/τ);  loss = Σ ℓ / denominator.
    h and c are scaled to length 1 first. The codes q come from `sinkhorn` and carry no gradient.

    Args:
        features_ND, augmented_ND: floating point [N, D], the two views.
        prototypes_KD: floating point [K, D], trained along: 50 on pairs, 20 on differences.
        temperature: τ.
        epsilon, iterations: of `sinkhorn`.
        denominator: by default N.

    Returns: (loss, diagnostics): `agreed` (features whose two codes peak at one prototype) and
        `terms`.
    Raises: ValueError for a number that is not positive, no features, another rank, shape or dtype.
    """
    features_ND, augmented_ND = _views(features_ND, augmented_ND, temperature)
    check_floating(prototypes_KD=prototypes_KD)
    check_rank(2, prototypes_KD=prototypes_KD)
    if prototypes_KD.shape[1] != features_ND.shape[1]:
        raise ValueError(
            f"prototypes_KD has {prototypes_KD.shape[1]} columns and the features "
            f"{features_ND.shape[1]}; make the prototypes for this feature size"
        )
    directions_KD = F.normalize(prototypes_KD.to(features_ND.dtype), dim=1)
    scores_NK = F.normalize(features_ND, dim=1) @ directions_KD.T
    other_NK = F.normalize(augmented_ND, dim=1) @ directions_KD.T
    codes_NK = sinkhorn(scores_NK, epsilon=epsilon, iterations=iterations)
    other_codes_NK = sinkhorn(other_NK, epsilon=epsilon, iterations=iterations)
    swapped = (
        -(other_codes_NK * F.log_softmax(scores_NK / temperature, dim=1)).sum()
        - (codes_NK * F.log_softmax(other_NK / temperature, dim=1)).sum()
    )
    terms = codes_NK.new_tensor(len(codes_NK), dtype=torch.float64)
    agreed = (codes_NK.argmax(1) == other_codes_NK.argmax(1)).sum()
    return divide(swapped, denominator, terms), {"agreed": agreed.double(), "terms": terms}


@torch.no_grad()
def sinkhorn(scores_NK: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Codes: soft assignments to prototypes that use all of them alike (Caron et al. 2020, eq. 5).

    Q = exp(scores/ε), then in turn each prototype's column is scaled to sum to 1/K and each row to
    1/N; last, the rows are scaled to 1. Computed in logarithms, so that no exponential overflows.

    Args:
        scores_NK: floating point [N, K].
        epsilon: ε, positive: small makes the codes hard.
        iterations: rounds, at least 1.

    Returns: codes_NK [N, K] in float32 or better, rows summing to 1, without gradient.
    Raises: ValueError for a number out of range, an empty tensor, another rank or dtype.
    """
    (scores_NK,) = widen(scores_NK=scores_NK)
    check_rank(2, scores_NK=scores_NK)
    if not epsilon > 0 or iterations < 1 or not scores_NK.numel():
        raise ValueError(
            f"epsilon is {epsilon}, iterations is {iterations}, scores_NK has shape "
            f"{tuple(scores_NK.shape)}; all must be positive"
        )
    log_codes_NK = scores_NK / epsilon
    for _ in range(iterations):
        log_codes_NK = log_codes_NK - log_codes_NK.logsumexp(0, keepdim=True)
        log_codes_NK = log_codes_NK - log_codes_NK.logsumexp(1, keepdim=True)
    return log_codes_NK.exp()


def _views(features_ND: Tensor, augmented_ND: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    features_ND, augmented_ND = widen(features_ND=features_ND, augmented_ND=augmented_ND)
    check_rank(2, features_ND=features_ND)
    if not temperature > 0 or not len(features_ND):
        raise ValueError(
            f"temperature is {temperature} for {len(features_ND)} features; both must be positive"
        )
    return features_ND, augmented_ND
