"""One optimizer step of a reward model: the ranking loss, and what is added to it.

loss = rank + centring·mean over lists of (mean score)² + lm_coef·mean NLL of a token of the best
responses + β·contrastive. The lists (pairs, tokens, features) of the whole step are the
denominators, so that its split into forward passes and graphs changes nothing; only the contrastive
loss compares texts of one graph with each other.

Shapes: N texts, P pairs, L lists, D features.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.algos.ranking import comparison_loss
from rlhf_ray.config import RM
from rlhf_ray.data.tokenise import TokenRows
from rlhf_ray.models.logprobs import HeadShape
from rlhf_ray.models.reward_model import RewardModel
from rlhf_ray.training.language_loss import nll_sum
from rlhf_ray.training.ranked_data import Comparisons, RankedData, forwards, in_order
from rlhf_ray.training.supervised import MasterAdamW, StepSums, fill
from rlhf_ray.training.views import Views

# Texts whose activations are held at once; a batch of lists beyond it is split between lists.
GRAPH_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Denominators:
    """Denominators of a whole step."""

    lists: int
    terms: int
    lm_tokens: int


@dataclass(slots=True)
class Sums:
    """What the parts of a step add up to: name -> (sum, count)."""

    means: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, name: str, total: float | Tensor, count: float) -> None:
        """Add a sum over `count` terms."""
        before, counted = self.means.get(name, (0.0, 0.0))
        self.means[name] = (before + float(total), counted + count)


class RewardStep:
    """Call it with the lists of a step: forward and backward; the optimizer's step is the caller's.

    views: for the contrastive loss, None without one.
    """

    def __init__(
        self,
        optimizer: MasterAdamW[RewardModel],
        data: RankedData,
        settings: RM,
        *,
        views: Views | None = None,
        seed: int = 0,
    ) -> None:
        self.optimizer, self.data = optimizer, data
        self._settings, self._views = settings, views
        self._rng = np.random.default_rng([seed, 2])
        if settings.label_smoothing and bool((data.target_P < 1).any()):
            raise ValueError(
                f"rm.label_smoothing is {settings.label_smoothing} and the data bring soft labels "
                f"(`target` below 1): both say how sure a label is, so leave one out"
            )

    def __call__(self, lists: list[int]) -> StepSums:
        """Gradients of one step over whole lists; what it adds up to."""
        whole, sums = self._whole(lists), Sums()
        for part in fill(lists, self.data.list_tokens, GRAPH_TOKENS):
            self.optimizer.backward(self._part(part, whole, sums))
        tokens = float(self.data.rows.lengths[self.data.texts_of(lists)].sum())
        pairs = sums.means["pair_accuracy"][1]
        return StepSums(means=sums.means, amounts={"tokens": tokens, "pairs": pairs})

    def _whole(self, lists: list[int]) -> Denominators:
        counts = np.diff(self.data.pair_starts)[lists]
        by_list = self._settings.reduction == "list"
        return Denominators(
            lists=len(lists),
            terms=int((counts > 0).sum() if by_list else counts.sum()),
            lm_tokens=max(1, self._lm_tokens(lists)) if self._settings.lm_coef else 0,
        )

    def _part(self, lists: list[int], whole: Denominators, sums: Sums) -> Tensor:
        """The loss of some of the step's lists, over the step's denominators."""
        model, settings = self.optimizer.compute, self._settings
        features_ND, nll = self._encode(lists)
        scores_N = model.score_features(features_ND)
        compared = self.data.comparisons_of(lists).to(scores_N.device)
        if self._views is None:
            loss = self._rank(scores_N, compared, whole)
        else:
            one_ND, other_ND = self._views.draw(features_ND)
            first, second = (
                self._rank(model.score_features(view_ND), compared, whole)
                for view_ND in (one_ND, other_ND)
            )
            loss = (first + second) / 2
        sums.add("loss/rank", loss.detach() * whole.terms, _terms(compared, settings.reduction))
        gaps_P = (scores_N[compared.pairs.first_P] - scores_N[compared.pairs.second_P]).detach()
        sums.add("pair_accuracy", (gaps_P > 0).sum(), len(gaps_P))
        if self._views is not None:
            extra, terms = self._views.loss(one_ND, other_ND, compared.pairs, model.aside)
            sums.add("loss/contrastive", extra.detach() * terms, terms)
            loss = loss + self._views.weight * extra * (len(lists) / whole.lists)
        if settings.centring:
            penalty = self._centre_sum(scores_N, lists) / whole.lists
            sums.add("loss/centring", penalty.detach() * whole.lists, len(lists))
            loss = loss + settings.centring * penalty
        if nll is not None:
            sums.add("loss/lm", nll.detach(), self._lm_tokens(lists))
            loss = loss + settings.lm_coef * nll / whole.lm_tokens
        return loss

    def _encode(self, lists: list[int]) -> tuple[Tensor, Tensor | None]:
        """features_ND of all texts in order; Σ −log p over tokens of the best ones, if wanted."""
        texts = self.data.texts_of(lists)
        if self._settings.token_dropout:
            rows = thinned(self.data.rows, texts, self._settings.token_dropout, self._rng)
        else:
            rows = self.data.rows.of(texts)
        best = set(self.data.best_of(lists)) if self._settings.lm_coef else set()
        parts, picked, nll = [], [], None
        model, every = self.optimizer.compute, list(range(len(texts)))
        for some, packed, encoded in forwards(model, rows, every):
            parts.append(encoded.features_BD.float())
            picked.append(some)
            trained = {
                place: self.data.rows.trained_mask(texts[i])
                for place, i in enumerate(some)
                if texts[i] in best
            }
            if trained:
                head, shape = model.aside["lm_head"], HeadShape.of(model.backbone.config)
                part = nll_sum(encoded.hidden_ND, packed, trained, head, shape)
                nll = part if nll is None else nll + part
        return in_order(parts, picked), nll

    def _rank(self, scores_N: Tensor, compared: Comparisons, whole: Denominators) -> Tensor:
        settings = self._settings
        return comparison_loss(
            scores_N,
            compared.pairs,
            reduction=settings.reduction,
            form=settings.form,
            margin=compared.margin_P + settings.margin,
            label_smoothing=settings.label_smoothing,
            target=compared.target_P,
            denominator=whole.terms,
        )

    def _centre_sum(self, scores_N: Tensor, lists: list[int]) -> Tensor:
        """Σ over lists of (mean score)²."""
        sizes_L = torch.from_numpy(np.diff(self.data.starts)[lists]).to(scores_N.device)
        list_N = torch.repeat_interleave(sizes_L)
        totals_L = scores_N.new_zeros(len(lists)).index_add(0, list_N, scores_N)
        return (totals_L / sizes_L).square().sum()

    def _lm_tokens(self, lists: list[int]) -> int:
        best = self.data.best_of(lists)
        return sum(int(self.data.rows.trained_mask(n)[1:].sum()) for n in best)


def thinned(rows: TokenRows, texts: list[int], share: float, rng: np.random.Generator) -> TokenRows:
    """The rows `texts` without a random `share` of their tokens; first and last stay."""
    kept = []
    for n in texts:
        row = rows.token_ids[n]
        keep = rng.random(len(row)) >= share
        keep[[0, -1]] = True
        kept.append(row[keep])
    return TokenRows(kept, np.zeros(len(kept), np.int64), 0)


def _terms(compared: Comparisons, reduction: str) -> int:
    counts_L = compared.pairs.count_L()
    return int((counts_L > 0).sum() if reduction == "list" else counts_L.sum())
