"""MetaRM: a reward model that keeps telling responses apart as the policy moves.

Algorithm 1 of Wang et al. 2024 (arXiv 2401.06080), first order: climb the difference objective on
responses of the shifted policy, take the ranking gradient there, apply it where one started.
Shapes: N completions, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from rlhf_ray.algos.checks import Denominator, check_ids, check_rank, divide, widen_scores
from rlhf_ray.algos.ranked_pairs import all_pairs


def difference_objective(
    scores_N: Tensor,
    group_ids_N: Tensor | None = None,
    *,
    denominator: Denominator = None,
) -> Tensor:
    """J = 2/k²·Σ_{i<j} σ(|r_i − r_j|) over the k responses of a prompt; Σ over prompts/denominator.

    (What algorithm 1 of Wang et al. 2024, arXiv 2401.06080, climbs; Dou et al. 2024, arXiv
    2405.00438.)

    Args:
        scores_N: floating point or integer [N], of responses sampled from the shifted policy.
        group_ids_N: integers [N], the prompt of each; None when all are of one prompt.
        denominator: by default the number of prompts.

    Returns: a scalar in the compute dtype.
    Raises: ValueError for a prompt with one response, another shape or dtype.
    """
    (scores_N,) = widen_scores(scores_N=scores_N)
    check_rank(1, scores_N=scores_N)
    if group_ids_N is None:
        group_ids_N = torch.zeros_like(scores_N, dtype=torch.long)
    check_ids(scores_N, group_ids_N=group_ids_N)
    ids_G, sizes_G = torch.unique(group_ids_N, return_counts=True)
    if bool((sizes_G < 2).any()):
        raise ValueError(
            f"group(s) {ids_G[sizes_G < 2].tolist()[:8]} hold one response only, which has no "
            "difference; sample two responses a prompt at least"
        )
    pairs = all_pairs(group_ids_N)
    apart_P = (scores_N[pairs.first_P] - scores_N[pairs.second_P]).abs().sigmoid()
    scaled_P = apart_P * 2 / sizes_G[pairs.list_P].square()
    return divide(scaled_P.sum(), denominator, sizes_G.new_tensor(len(sizes_G)))


def meta_gradient(
    parameters: Iterable[Tensor],
    *,
    ascend: Callable[[], Tensor],
    descend: Callable[[], Tensor],
    eta: float,
) -> tuple[Tensor, Tensor | None]:
    """Leaves in each `.grad` the gradient ∇L(θ') at θ' = θ + η∇J(θ), with the parameters back at θ.

    Then the caller's `optimizer.step()` is θ ← θ − α∇L(θ'): clipping, schedule and optimizer state
    belong to θ. With η = 0 it is the gradient of a plain step, bit for bit: `ascend` is not called
    (nor does its dropout draw any random numbers).
    Each closure runs forward and backward over all its micro-batches and returns what it
    accumulated, as closures of `torch.optim.LBFGS` do; so any model works, sharded ones too.

    Args:
        parameters: leaves of the model; what was in their `.grad` is dropped.
        ascend: calls backward on J (`difference_objective`) and returns it.
        descend: calls backward on the ranking loss L and returns it.
        eta: η, at least 0.

    Returns: (L(θ'), J(θ)), detached; None for J when η = 0.
    Raises: ValueError for η below 0, or no parameter that trains. Whatever a closure raises passes
        through, with the parameters back at θ.
    """
    trained = [p for p in parameters if p.requires_grad]
    if not eta >= 0 or not trained:
        raise ValueError(
            f"eta is {eta} for {len(trained)} trainable parameters; eta must be at least 0, and a "
            "parameter must train"
        )
    _drop_gradients(trained)
    if eta == 0:
        return descend().detach(), None
    objective = ascend().detach()
    moved = [(p, p.grad, p.detach().clone()) for p in trained if p.grad is not None]
    try:
        with torch.no_grad():
            for parameter, gradient, _ in moved:
                parameter.add_(gradient, alpha=eta)
        _drop_gradients(trained)
        loss = descend().detach()
    finally:
        with torch.no_grad():
            for parameter, _, origin in moved:
                parameter.copy_(origin)
    return loss, objective


def _drop_gradients(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None
