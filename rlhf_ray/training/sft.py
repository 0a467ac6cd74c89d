"""Supervised fine-tuning: a language model learns the texts it is given.

`train_sft` is a generator of progress: the same function runs in a script, a test or a Ray task.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_ray.config import Config
from rlhf_ray.data.batching import token_budget_batches
from rlhf_ray.data.faults import BadRows
from rlhf_ray.data.texts import Text, load_texts, split_texts, with_template
from rlhf_ray.data.tokenise import TokenRows, tokenise_pairs
from rlhf_ray.models.device import device_here
from rlhf_ray.models.loading import (
    check_length,
    compute_dtype,
    load_causal_lm,
    load_tokenizer,
    positions_of,
)
from rlhf_ray.models.logprobs import HeadShape
from rlhf_ray.models.norms import use_short_norms
from rlhf_ray.models.packing import PackedRows, hidden_states, packs, use_packing
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.training.language_loss import nll_sum
from rlhf_ray.training.output import written_aside
from rlhf_ray.training.supervised import MasterAdamW, Row, Schedule, StepSums, epochs_of, fill, fit

# Of one forward pass. A larger one leaves the processor's cache.
MICRO_TOKENS = {"cpu": 2048, "cuda": 32_768}


def train_sft(config: Config, out_dir: str | Path, *, device: str | None = None) -> Iterator[Row]:
    """Train on `config.data.texts`, write model and tokenizer to `out_dir`, yield rows of progress.

    Rows hold step, total, epoch, loss/lm (over the last steps), lr, grad/norm, tokens_per_s, eta_s;
    at the end of an epoch also heldout/loss_lm and heldout/perplexity. The weights
    with the lowest held-out loss are written. The last row has done=True.
    Raises ValueError for data or models that cannot be used, before the first row.
    """
    if config.data.texts is None:
        raise ValueError("SFT needs texts: give --data.texts FILE, or --sft.epochs 0 to skip it")
    place = torch.device(device or device_here())
    text_set = load_texts(
        config.data.texts,
        text_column=config.data.text_column,
        prompt_column=config.data.prompt_column,
        on_bad_row=config.data.on_bad_row,
    )
    train, heldout = split_texts(text_set, config.data.heldout_fraction, config.run.seed)
    tokenizer, model = base_model(config, train)
    bad = BadRows(config.data.on_bad_row, count=text_set.bad_rows)
    bad.examples += [text_set.first_bad] if text_set.first_bad else []
    train, heldout = _rendered(config, tokenizer, (train, heldout), bad)
    check_length(positions_of(model.config), config.sft.max_tokens, "sft.max-tokens")
    rows = _tokenise(tokenizer, train, config.sft.max_tokens)
    heldout_rows = _tokenise(tokenizer, heldout, config.sft.max_tokens)

    optimizer = MasterAdamW(
        model.to(place),
        dtype=compute_dtype(config.model.dtype, place),
        weight_decay=config.sft.weight_decay,
    )
    lengths = rows.lengths

    def batches(rng: np.random.Generator) -> list[list[int]]:
        return fill(rng.permutation(len(rows)).tolist(), lengths, config.sft.batch_tokens)

    def run_step(step_rows: list[int]) -> StepSums:
        return sft_step(optimizer, rows, step_rows)

    def evaluate() -> tuple[float, Row]:
        if not len(heldout_rows):
            return 0.0, {}
        loss = heldout_loss(optimizer.compute, heldout_rows)
        return -loss, {"heldout/loss_lm": loss, "heldout/perplexity": math.exp(min(loss, 700.0))}

    steps = epochs_of(batches, config.sft.epochs, config.run.seed)
    schedule = Schedule(config.sft.lr, sum(map(len, steps)), config.sft.warmup)
    optimizer.compute.train()
    row: Row = {}
    for row in fit(optimizer, steps, run_step, schedule=schedule, evaluate=evaluate):
        yield row
    with written_aside(out_dir) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    yield row | {
        "done": True,
        "bad_rows": bad.count,
        "first_bad": bad.first,
        "cut": rows.cut,
    }


def base_model(
    config: Config, texts: list[Text]
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """`model.path` in float32 with its tokenizer; without a path both are made from `texts`."""
    wanted, trust = config.model, config.model.trust_remote_code
    if wanted.path is not None:
        tokenizer = load_tokenizer(wanted.path, trust_remote_code=trust)
        model = load_causal_lm(wanted.path, trust_remote_code=trust)
    else:
        tokenizer = make_tokenizer((t.prompt + t.response for t in texts), wanted.vocab)
        model = make_decoder(tokenizer, wanted.hidden, wanted.layers, config.run.seed)
    use_short_norms(model)
    use_packing(model)
    return tokenizer, model


def sft_step(
    optimizer: MasterAdamW[PreTrainedModel], rows: TokenRows, step_rows: list[int]
) -> StepSums:
    """Forward and backward of one optimizer step: the mean loss over all its trained tokens.

    The tokens of the whole step are the denominator: a split into micro-batches changes nothing.
    """
    tokens = sum(int(rows.trained_mask(row)[1:].sum()) for row in step_rows)
    total = 0.0
    for picked in _micro_batches(optimizer.compute, rows.lengths[step_rows]):
        loss_sum = _nll_sum(optimizer.compute, rows, [step_rows[i] for i in picked])
        optimizer.backward(loss_sum / max(1, tokens))
        total += float(loss_sum.detach())
    return StepSums(
        means={"loss/lm": (total, tokens)},
        amounts={"tokens": float(rows.lengths[step_rows].sum())},
    )


@torch.inference_mode()
def heldout_loss(model: PreTrainedModel, rows: TokenRows) -> float:
    """Mean negative log-likelihood of a trained token, in nats; dropout off."""
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for picked in _micro_batches(model, rows.lengths):
        total += float(_nll_sum(model, rows, picked))
        tokens += sum(int(rows.trained_mask(row)[1:].sum()) for row in picked)
    model.train(was_training)
    return total / max(1, tokens)


def _nll_sum(model: PreTrainedModel, rows: TokenRows, picked: list[int]) -> Tensor:
    packed = PackedRows.of([rows.token_ids[row] for row in picked], model.device)
    return nll_sum(
        hidden_states(model.base_model, packed),
        packed,
        {place: rows.trained_mask(row) for place, row in enumerate(picked)},
        model.get_output_embeddings(),
        HeadShape.of(model.config),
    )


def _micro_batches(model: PreTrainedModel, lengths: np.ndarray) -> list[list[int]]:
    budget = MICRO_TOKENS[model.device.type]
    return token_budget_batches(lengths, budget, packed=packs(model.base_model))


def _rendered(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    sides: tuple[list[Text], list[Text]],
    bad: BadRows,
) -> tuple[list[Text], list[Text]]:
    """Both sides as the model reads them. ValueError where none is left to train on.

    bad: the rows that were bad before; it counts those that the chat template refuses.
    """
    data = config.data
    train, heldout = (with_template(side, tokenizer, data.chat_template, bad) for side in sides)
    if train:
        return train, heldout
    if heldout:
        raise ValueError(
            f"{data.texts}: only held-out texts are left ({len(heldout)}), {bad.count} rows are "
            f"bad, the first: {bad.first}; mend them, or set --data.heldout-fraction 0"
        )
    fix = "mend them, or do without the template: --data.chat-template never"
    raise bad.none_left(data.texts or "", "text", fix=fix)


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: list[Text], max_tokens: int) -> TokenRows:
    return tokenise_pairs(
        tokenizer,
        [text.prompt for text in texts],
        [text.response for text in texts],
        max_tokens=max_tokens,
    )
