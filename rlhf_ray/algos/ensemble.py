"""One score from those of several reward models.

Shapes: M models, N responses.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rlhf_ray.algos.checks import check_choice, check_rank, widen_scores

# How the scores of M models become one; the second argument is λ.
COMBINATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "mean": lambda scores_MN, _: scores_MN.mean(0),
    "min": lambda scores_MN, _: scores_MN.min(0).values,
    "cautious": lambda scores_MN, caution: scores_MN.mean(0) - caution * scores_MN.std(0, False),
}


def combine_scores(scores_MN: Tensor, *, how: str = "mean", caution: float = 1.0) -> Tensor:
    """mean: μ; min: the smallest; cautious: μ − λ·σ, σ over models with ddof 0. (Coste et al. 2023)

    The scores are to be of one scale, for example each model's deviations on reference samples:
    the zero of a ranking model's scores is arbitrary.

    Args:
        scores_MN: floating point or integer [M, N], one row a model.
        how: a key of COMBINATIONS.
        caution: λ of `cautious`, at least 0.

    Returns: scores_N [N] in the compute dtype.
    Raises: ValueError for no model, an unknown combination, a negative λ, another rank or dtype.
    """
    (scores_MN,) = widen_scores(scores_MN=scores_MN)
    check_rank(2, scores_MN=scores_MN)
    check_choice("how", how, COMBINATIONS)
    if not len(scores_MN) or not caution >= 0:
        raise ValueError(
            f"{len(scores_MN)} models with caution {caution}: give the scores of one model at "
            "least, and a caution of 0 or more"
        )
    return COMBINATIONS[how](scores_MN, caution)
