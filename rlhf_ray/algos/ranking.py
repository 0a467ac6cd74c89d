"""Losses of reward models over pairs and ranked lists; the metrics are those of `ranking_metrics`.

Shapes: P pairs, N completions, M models, L lists.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf_ray.algos.checks import (
    Denominator,
    check_choice,
    check_floating,
    check_range,
    check_rank,
    check_same_shape,
    compute_dtype,
    divide,
    widen_scores,
)
from rlhf_ray.algos.ranked_pairs import Pairs, check_ranks, ranked_pairs
from rlhf_ray.algos.ranking_metrics import (
    exact_order,
    expected_calibration_error,
    gap_moments,
    kendall_tau_b,
    pair_accuracy,
    score_gaps,
)

__all__ = [
    "FORMS",
    "comparison_loss",
    "count_ranked_terms",
    "exact_order",
    "expected_calibration_error",
    "gap_moments",
    "kendall_tau_b",
    "pair_accuracy",
    "pairwise_loss",
    "preference_strength",
    "ranked_list_loss",
    "score_gaps",
]

# The losses of a score gap. logsigmoid and logexp are one function computed in two ways; neither
# underflows: at −200 both are 200 with gradient −1.
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "logsigmoid": lambda gap: -F.logsigmoid(gap),
    "logexp": lambda gap: torch.logaddexp(torch.zeros_like(gap), -gap),
    "sigmoid": lambda gap: -torch.sigmoid(gap),
}


def pairwise_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    *,
    margin: float | Tensor = 0.0,
    label_smoothing: float = 0.0,
    target: float | Tensor | None = None,
    form: str = "logsigmoid",
) -> Tensor:
    """Loss of each pair under Bradley and Terry's model (Wang et al. 2024, section 2).

    d = chosen − rejected − margin. By default −log σ(d);
    with label smoothing α: −(1 − α)·log σ(d) − α·log σ(−d);
    with a soft target q: −q·log σ(d) − (1 − q)·log σ(−d).
    The margin stands inside, so that it scales the gradient: outside, as eq. 6 of the paper is
    printed, it would have none.

    Args:
        chosen_P, rejected_P: floating point or integer [P], scores of a pair's two completions.
        margin: a number, or one a pair.
        label_smoothing: α, the probability that a label is wrong, in [0, 1].
        target: q, the probability that chosen is better, in [0, 1]; a number, or one a pair.
        form: what stands for −log σ: a key of FORMS.

    Returns: loss_P [P] in the compute dtype.
    Raises: ValueError when both α and q are given, or one is out of range; for a margin that is
        not finite, an unknown form, another shape or dtype.
    """
    check_choice("form", form, FORMS)
    loss = FORMS[form]
    chosen_P, rejected_P = widen_scores(chosen_P=chosen_P, rejected_P=rejected_P)
    check_rank(1, chosen_P=chosen_P)
    check_range(0, 1, label_smoothing=label_smoothing)
    margin_P = _per_pair("margin", margin, chosen_P)
    if not bool(margin_P.isfinite().all()):
        raise ValueError("margin is not finite; it is the gap that is asked of a pair, 0 for none")
    gap_P = chosen_P - rejected_P - margin_P
    if target is None and label_smoothing == 0:
        return loss(gap_P)
    if target is None:
        target_P = chosen_P.new_tensor(1 - label_smoothing)
    elif label_smoothing == 0:
        target_P = _per_pair("target", target, chosen_P)
    else:
        raise ValueError(
            f"label_smoothing is {label_smoothing} and a target is given; both say how sure the "
            "label is, so give one of them"
        )
    if not bool(((target_P >= 0) & (target_P <= 1)).all()):
        raise ValueError("target lies outside [0, 1]; it is the probability that chosen is better")
    return _weighted(target_P, loss(gap_P)) + _weighted(1 - target_P, loss(-gap_P))


def comparison_loss(
    scores_N: Tensor,
    pairs: Pairs,
    *,
    reduction: str = "list",
    form: str = "logsigmoid",
    margin: float | Tensor = 0.0,
    label_smoothing: float = 0.0,
    target: float | Tensor | None = None,
    denominator: Denominator = None,
) -> Tensor:
    """Mean of `pairwise_loss` over pairs of completions (Ouyang et al. 2022, eq. 1).

    "list": Σ_l (1/|pairs_l|)·Σ_{pairs of l} loss / denominator, by default the number of lists with
    a pair, so that a prompt is one element however many completions it has;
    "pair": Σ_{all pairs} loss / denominator, by default the number of pairs.
    When there is no pair at all the loss is 0.

    Args:
        scores_N: floating point or integer [N].
        pairs: which are compared, the better one as `first`.
        reduction: "list" or "pair".
        form, margin, label_smoothing, target: as in `pairwise_loss`.
        denominator: for the whole step, summed over its micro-batches.

    Returns: a scalar in the compute dtype.
    Raises: ValueError for an unknown reduction, and as `pairwise_loss` does.
    """
    check_choice("reduction", reduction, ("list", "pair"))
    loss_P = pairwise_loss(
        scores_N[pairs.first_P],
        scores_N[pairs.second_P],
        margin=margin,
        label_smoothing=label_smoothing,
        target=target,
        form=form,
    )
    count_L = pairs.count_L()
    if reduction == "pair":
        return divide(loss_P.sum(), denominator, count_L.sum())
    return divide((loss_P / count_L[pairs.list_P]).sum(), denominator, (count_L > 0).sum())


def ranked_list_loss(
    scores_N: Tensor,
    list_ids_N: Tensor,
    *,
    ranks_N: Tensor | None = None,
    reduction: str = "list",
    form: str = "logsigmoid",
    denominator: Denominator = None,
) -> Tensor:
    """`comparison_loss` over all pairs of unequal rank of ranked lists: −log σ(s_better − s_worse).

    (Ouyang et al. 2022, eq. 1.) Pairs of equal rank are dropped, and a list left without a pair
    counts nowhere; when no pair is left at all the loss is 0.

    Args:
        scores_N: floating point or integer [N], best first within each list unless ranks are given.
        list_ids_N: integers [N]; the members of a list need not be adjacent.
        ranks_N: integers or floats [N], smaller is better, ties allowed.
        reduction: "list" or "pair".
        form: "logsigmoid"; "logexp", the same as log(1 + exp(−d)); or "sigmoid", −σ(d), kept for
            comparison only.
        denominator: for the whole step, from `count_ranked_terms` over its micro-batches.

    Returns: a scalar in the compute dtype.
    Raises: ValueError for an unknown reduction or form, another shape or dtype.
    """
    check_choice("reduction", reduction, ("list", "pair"))
    check_choice("form", form, FORMS)
    (scores_N,) = widen_scores(scores_N=scores_N)
    check_ranks(list_ids_N, ranks_N)
    check_same_shape(scores_N=scores_N, list_ids_N=list_ids_N)
    pairs = ranked_pairs(list_ids_N, ranks_N)
    return comparison_loss(scores_N, pairs, reduction=reduction, form=form, denominator=denominator)


def count_ranked_terms(
    list_ids_N: Tensor, *, ranks_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(lists with a pair, pairs): the default denominators of "list" and "pair", int64 scalars.

    Args:
        list_ids_N, ranks_N: as for `ranked_list_loss`.

    Raises: ValueError for ids that are not integers, ranks of another shape or not finite.
    """
    count_L = ranked_pairs(list_ids_N, ranks_N).count_L()
    return (count_L > 0).sum(), count_L.sum()


def preference_strength(gaps_MP: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (ddof 0) over M models of the gap chosen − rejected.

    (Wang et al. 2024, eq. 4.) A mean below 0 suspects a wrong label, one near 0 an ambiguous pair;
    a high deviation means that the models disagree.

    Args:
        gaps_MP: floating point [M, P], one row a model.

    Returns: (mean_P, std_P), each [P] in the compute dtype.
    Raises: ValueError for no models, another rank or dtype.
    """
    check_floating(gaps_MP=gaps_MP)
    check_rank(2, gaps_MP=gaps_MP)
    if not len(gaps_MP):
        raise ValueError("gaps_MP has no rows; give the gaps of one model at least")
    gaps_MP = gaps_MP.to(compute_dtype(gaps_MP))
    return gaps_MP.mean(0), gaps_MP.std(0, correction=0)


def _weighted(share_P: Tensor, loss_P: Tensor) -> Tensor:
    """share·loss, and 0 where the share is 0, however large the loss."""
    return share_P * torch.where(share_P > 0, loss_P, 0.0)


def _per_pair(name: str, value: float | Tensor, like_P: Tensor) -> Tensor:
    """A number, or one a pair, as a tensor like the scores."""
    tensor = torch.as_tensor(value, dtype=like_P.dtype, device=like_P.device)
    if tensor.ndim and tensor.shape != like_P.shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} for {len(like_P)} pairs; give one number, or "
            "one a pair"
        )
    return tensor
