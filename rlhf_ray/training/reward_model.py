"""Reward model training: every list of a batch in one pass, K texts cost K forwards.

`train_reward_model` is a generator of progress: the same function runs in a script, a test or a Ray
task.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from rlhf_ray.algos.ranking import count_ranked_terms, ranked_list_loss, score_gaps
from rlhf_ray.config import Config
from rlhf_ray.data.preferences import PreferenceSet, RankedList, load_lists, split_lists
from rlhf_ray.models.loading import check_length, compute_dtype, load_tokenizer
from rlhf_ray.models.reward_model import RewardModel
from rlhf_ray.training.output import write_json, written_aside
from rlhf_ray.training.ranked_data import RankedData, evaluate_lists, scores_of, tokenise_lists
from rlhf_ray.training.supervised import (
    MasterAdamW,
    Row,
    Schedule,
    StepSums,
    epochs_of,
    fill,
    fit,
)

METRICS_FILE = "metrics.json"
# Texts whose activations are held at once; a batch of lists beyond it is split between lists.
GRAPH_TOKENS = 16_384


def train_reward_model(
    config: Config, base: str | Path, out_dir: str | Path, *, device: str | None = None
) -> Iterator[Row]:
    """Train on `config.data.preferences` from `base`, write to `out_dir`, yield rows of progress.

    Rows hold step, total, epoch, loss/rank and pair_accuracy (over the last steps), lr, grad/norm,
    tokens_per_s, pairs_per_s, eta_s; at the end of an epoch also the metrics of `evaluate_lists` on
    lists set apart. The weights with the highest pair accuracy on those are written, with the
    tokenizer and metrics.json beside them. The last row has done=True.
    Raises ValueError for data or models that cannot be used, before the first row.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    trust = config.model.trust_remote_code
    tokenizer = load_tokenizer(base, trust_remote_code=trust)
    preferences, train, heldout = load_split(config)
    model = RewardModel.from_backbone(
        base, config.rm.pooling, seed=config.run.seed, trust_remote_code=trust
    ).to(place)
    check_length(model.backbone, config.rm.max_tokens, "rm.max-tokens")
    data = tokenise_lists(tokenizer, train, max_tokens=config.rm.max_tokens)
    heldout_data = tokenise_lists(tokenizer, heldout, max_tokens=config.rm.max_tokens)
    optimizer = MasterAdamW(
        model, dtype=compute_dtype(config.model.dtype, place), weight_decay=config.rm.weight_decay
    )

    def batches(rng: np.random.Generator) -> list[list[int]]:
        order = rng.permutation(len(data)).tolist()
        return fill(order, np.ones(len(data)), config.rm.batch_lists)

    def run_step(lists: list[int]) -> StepSums:
        return rm_step(
            optimizer, data, lists, pad_id=tokenizer.pad_token_id, reduction=config.rm.reduction
        )

    def evaluate() -> tuple[float, Row]:
        if not len(heldout_data):
            return 0.0, {}
        metrics = evaluate_lists(optimizer.compute, heldout_data, pad_id=tokenizer.pad_token_id)
        return metrics["heldout/pair_accuracy"], metrics

    steps = epochs_of(batches, config.rm.epochs, config.run.seed)
    schedule = Schedule(config.rm.lr, sum(map(len, steps)), config.rm.warmup)
    optimizer.compute.train()
    row: Row = {}
    for row in fit(optimizer, steps, run_step, schedule=schedule, evaluate=evaluate):
        yield row
    _, verdict = evaluate()
    summary = {
        **verdict,
        "lists": len(train),
        "heldout_lists": len(heldout),
        "bad_rows": preferences.bad_rows,
        "cut": data.rows.cut,
    }
    with written_aside(out_dir) as aside:
        model.eval().save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        write_json(aside / METRICS_FILE, summary)
    yield row | verdict | {"bad_rows": preferences.bad_rows, "cut": data.rows.cut, "done": True}


def load_split(config: Config) -> tuple[PreferenceSet, list[RankedList], list[RankedList]]:
    """`config.data.preferences`, its lists for training and those set apart: no text in both."""
    if config.data.preferences is None:
        raise ValueError("a reward model needs ranked lists: give --data.preferences FILE")
    preferences = load_lists(
        config.data.preferences, on_bad_row=config.data.on_bad_row, seed=config.run.seed
    )
    train, heldout = split_lists(preferences, config.data.heldout_fraction, config.run.seed)
    return preferences, train, heldout


def rm_step(
    optimizer: MasterAdamW[RewardModel],
    data: RankedData,
    lists: list[int],
    *,
    pad_id: int,
    reduction: str,
) -> StepSums:
    """Forward and backward of one optimizer step over whole lists.

    The lists (or pairs) of the whole step are the denominator, so its split changes nothing.
    """
    every = data.texts_of(lists)
    terms = count_ranked_terms(data.list_ids_N[every], ranks_N=data.ranks_N[every])
    denominator = int(terms[0] if reduction == "list" else terms[1])
    loss_sum, right, pairs = 0.0, 0, 0
    for part in fill(lists, data.list_tokens, GRAPH_TOKENS):
        texts = data.texts_of(part)
        scores_N = scores_of(optimizer.compute, data.rows, texts, pad_id=pad_id)
        ids_N = data.list_ids_N[texts].to(scores_N.device)
        ranks_N = data.ranks_N[texts].to(scores_N.device)
        loss = ranked_list_loss(
            scores_N, ids_N, ranks_N=ranks_N, reduction=reduction, denominator=denominator
        )
        optimizer.backward(loss)
        gaps_P = score_gaps(scores_N.detach(), ids_N, ranks_N=ranks_N)
        loss_sum += float(loss.detach()) * denominator
        right, pairs = right + int((gaps_P > 0).sum()), pairs + len(gaps_P)
    return StepSums(
        means={"loss/rank": (loss_sum, denominator), "pair_accuracy": (right, pairs)},
        amounts={"tokens": float(data.rows.lengths[every].sum()), "pairs": float(pairs)},
    )
