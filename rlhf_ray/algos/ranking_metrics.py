"""What a reward model got right: order, size of the gaps, calibration.

A tie in the scores is wrong throughout: a model that gives every completion the same score gets 0.
Shapes: P pairs, N completions, L lists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algos.checks import (
    check_floating,
    check_rank,
    check_same_shape,
    compute_dtype,
    widen_scores,
)
from rlhf_ray.algos.ranked_pairs import (
    Pairs,
    all_pairs,
    check_ranks,
    rank_order,
    ranked_pairs,
)

CALIBRATION_BINS = 10


def score_gaps(scores_N: Tensor, list_ids_N: Tensor, *, ranks_N: Tensor | None = None) -> Tensor:
    """score of the better − score of the worse, for each pair of unequal rank of each list.

    (The difference inside σ of Ouyang et al. 2022, eq. 1.)

    Args:
        scores_N: floating point or integer [N], best first within each list unless ranks are given.
        list_ids_N: integers [N]; the members of a list need not be adjacent.
        ranks_N: integers or floats [N], smaller is better, ties allowed.

    Returns: gaps_P [P] in the compute dtype, list by list.
    Raises: ValueError for another shape or dtype.
    """
    gaps_P, _ = _gaps(scores_N, list_ids_N, ranks_N)
    return gaps_P


def pair_accuracy(gaps_P: Tensor) -> Tensor:
    """Share of pairs whose better completion has the strictly greater score: mean(gap > 0).

    (The accuracy of Stiennon et al. 2020 and of RewardBench, Lambert et al. 2024.)

    Args:
        gaps_P: floating point [P], from `score_gaps`.

    Returns: a scalar in [0, 1], in the compute dtype.
    Raises: ValueError for no pairs, another rank or dtype.
    """
    return (_checked(gaps_P) > 0).to(compute_dtype(gaps_P)).mean()


def exact_order(scores_N: Tensor, list_ids_N: Tensor, *, ranks_N: Tensor | None = None) -> Tensor:
    """Share of lists, among those with a pair of unequal rank, with all of these pairs right.

    mean_l [min over the pairs of l of gap > 0]: `pair_accuracy` with a list as the unit.

    Args: those of `score_gaps`.

    Returns: a scalar in [0, 1], in the compute dtype.
    Raises: ValueError for no list with a pair of unequal rank, another shape or dtype.
    """
    gaps_P, pairs = _gaps(scores_N, list_ids_N, ranks_N)
    wrong_L = pairs.list_P[~(gaps_P > 0)].bincount(minlength=pairs.lists)
    counted_L = pairs.count_L() > 0
    _check_any(counted_L)
    return (wrong_L[counted_L] == 0).to(gaps_P.dtype).mean()


def kendall_tau_b(scores_N: Tensor, list_ids_N: Tensor, *, ranks_N: Tensor | None = None) -> Tensor:
    """Mean over lists of Kendall's τ-b between ranks and scores (Kendall 1945).

    τ_b = Σ s_r·s_x / sqrt(Σ s_r²·Σ s_x²) over all pairs of a list, with s_r and s_x the signs of
    the difference in rank and in score. It is 0 where all scores are tied; lists without a pair of
    unequal rank count nowhere.

    Args: those of `score_gaps`.

    Returns: a scalar in [−1, 1], in the compute dtype.
    Raises: ValueError for no list with a pair of unequal rank, another shape or dtype.
    """
    scores_N = _scores(scores_N, list_ids_N, ranks_N)
    pairs = all_pairs(list_ids_N)
    by_rank_P = rank_order(pairs, ranks_N).to(scores_N.dtype)
    by_score_P = (scores_N[pairs.first_P] - scores_N[pairs.second_P]).sign()

    def per_list(x_P: Tensor) -> Tensor:
        return x_P.new_zeros(pairs.lists).index_add(0, pairs.list_P, x_P)

    ranked_L = per_list(by_rank_P.square())
    scored_L = per_list(by_score_P.square())
    tau_L = per_list(by_rank_P * by_score_P) / (ranked_L * scored_L).sqrt().clamp(min=1)
    counted_L = ranked_L > 0
    _check_any(counted_L)
    return tau_L[counted_L].mean()


def gap_moments(gaps_P: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (ddof 0) of the gaps: Σ g/P and sqrt(Σ(g − mean)²/P).

    (As Wang et al. 2024, eq. 4, takes them over models; here they are over pairs.)

    Args:
        gaps_P: floating point [P], from `score_gaps`, in units of score.

    Returns: (mean, std), scalars in the compute dtype.
    Raises: ValueError for no pairs, another rank or dtype.
    """
    gaps_P = _checked(gaps_P)
    return gaps_P.mean(), gaps_P.std(correction=0)


def calibration_bins(gaps_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of 10 equal bins of [.5, 1]: Σ confidence, number right, number of pairs.

    A pair's confidence is that of the model in its own choice, σ(|gap|); it is right where gap > 0.
    A bin holds its lower edge, the last one both. These are sums, so bins of splits add up.
    (The bins of Guo et al. 2017, section 2.)

    Args:
        gaps_P: floating point [P], from `score_gaps`.

    Returns: (confidence_10, right_10, count_10), float64 [10].
    Raises: ValueError for no pairs, NaN, another rank or dtype.
    """
    gaps_P = _checked(gaps_P).double()
    if bool(gaps_P.isnan().any()):
        raise ValueError("gaps_P holds NaN, which has no confidence; find the score that is NaN")
    confidence_P = gaps_P.abs().sigmoid()
    bin_P = ((confidence_P - 0.5) * 2 * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)

    def per_bin(x_P: Tensor) -> Tensor:
        return x_P.new_zeros(CALIBRATION_BINS).index_add(0, bin_P, x_P)

    right_P = (gaps_P > 0).double()
    return per_bin(confidence_P), per_bin(right_P), per_bin(torch.ones_like(gaps_P))


def expected_calibration_error(gaps_P: Tensor) -> Tensor:
    """Σ_b (n_b/n)·|accuracy_b − confidence_b| over the `calibration_bins` (Guo et al. 2017, eq. 3).

    Args:
        gaps_P: floating point [P], from `score_gaps`.

    Returns: a float64 scalar in [0, 1].
    Raises: ValueError for no pairs, NaN, another rank or dtype.
    """
    confidence_10, right_10, count_10 = calibration_bins(gaps_P)
    return (right_10 - confidence_10).abs().sum() / count_10.sum()


def _gaps(scores_N: Tensor, list_ids_N: Tensor, ranks_N: Tensor | None) -> tuple[Tensor, Pairs]:
    scores_N = _scores(scores_N, list_ids_N, ranks_N)
    pairs = ranked_pairs(list_ids_N, ranks_N)
    return scores_N[pairs.first_P] - scores_N[pairs.second_P], pairs


def _scores(scores_N: Tensor, list_ids_N: Tensor, ranks_N: Tensor | None) -> Tensor:
    (scores_N,) = widen_scores(scores_N=scores_N)
    check_ranks(list_ids_N, ranks_N)
    check_same_shape(scores_N=scores_N, list_ids_N=list_ids_N)
    return scores_N


def _checked(gaps_P: Tensor) -> Tensor:
    check_floating(gaps_P=gaps_P)
    check_rank(1, gaps_P=gaps_P)
    if not len(gaps_P):
        raise ValueError("gaps_P is empty; give one pair of unequal rank at least")
    return gaps_P.to(compute_dtype(gaps_P))


def _check_any(counted_L: Tensor) -> None:
    if not bool(counted_L.any()):
        raise ValueError(
            "no list holds two completions of unequal rank, so there is no order to compare; give "
            "lists of two at least"
        )
