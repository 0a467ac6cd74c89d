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
from rlhf_ray.data.batching import pad_right, token_budget_batches
from rlhf_ray.data.texts import Text, load_texts, split_texts, with_template
from rlhf_ray.data.tokenise import TokenRows, tokenise_pairs
from rlhf_ray.models.attention import use_short_attention
from rlhf_ray.models.loading import check_length, compute_dtype, load_causal_lm, load_tokenizer
from rlhf_ray.models.logprobs import HeadShape, response_logprobs, take_positions
from rlhf_ray.models.norms import use_short_norms
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.training.output import written_aside
from rlhf_ray.training.supervised import MasterAdamW, Row, Schedule, StepSums, epochs_of, fill, fit

# Rows of like length go together; smaller pads less, larger has fewer and longer matrix products.
MICRO_TOKENS = 2048


def train_sft(config: Config, out_dir: str | Path, *, device: str | None = None) -> Iterator[Row]:
    """Train on `config.data.texts`, write model and tokenizer to `out_dir`, yield rows of progress.

    Rows hold step, total, epoch, loss/lm (over the last steps), lr, grad/norm, tokens_per_s, eta_s;
    at the end of an epoch also heldout/loss_lm and heldout/perplexity. The weights
    with the lowest held-out loss are written. The last row has done=True.
    Raises ValueError for data or models that cannot be used, before the first row.
    """
    if config.data.texts is None:
        raise ValueError("SFT needs texts: give --data.texts FILE, or --sft.epochs 0 to skip it")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    text_set = load_texts(
        config.data.texts,
        text_column=config.data.text_column,
        prompt_column=config.data.prompt_column,
        on_bad_row=config.data.on_bad_row,
    )
    train, heldout = split_texts(text_set, config.data.heldout_fraction, config.run.seed)
    tokenizer, model = base_model(config, train)
    template = config.data.chat_template
    train, heldout = (with_template(part, tokenizer, template) for part in (train, heldout))
    check_length(model, config.sft.max_tokens, "sft.max-tokens")
    rows = _tokenise(tokenizer, train, config.sft.max_tokens)
    heldout_rows = _tokenise(tokenizer, heldout, config.sft.max_tokens)
    pad_id = tokenizer.pad_token_id

    optimizer = MasterAdamW(
        model.to(place),
        dtype=compute_dtype(config.model.dtype, place),
        weight_decay=config.sft.weight_decay,
    )
    lengths = rows.lengths

    def batches(rng: np.random.Generator) -> list[list[int]]:
        return fill(rng.permutation(len(rows)).tolist(), lengths, config.sft.batch_tokens)

    def run_step(step_rows: list[int]) -> StepSums:
        return sft_step(optimizer, rows, step_rows, pad_id=pad_id)

    def evaluate() -> tuple[float, Row]:
        if not len(heldout_rows):
            return 0.0, {}
        loss = heldout_loss(optimizer.compute, heldout_rows, pad_id=pad_id)
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
    yield row | {"done": True, "bad_rows": text_set.bad_rows, "cut": rows.cut}


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
    use_short_attention(model)
    use_short_norms(model)
    return tokenizer, model


def sft_step(
    optimizer: MasterAdamW[PreTrainedModel], rows: TokenRows, step_rows: list[int], *, pad_id: int
) -> StepSums:
    """Forward and backward of one optimizer step: the mean loss over all its trained tokens.

    The tokens of the whole step are the denominator: a split into micro-batches changes nothing.
    """
    tokens = sum(int(rows.trained_mask(row)[1:].sum()) for row in step_rows)
    total = 0.0
    for picked in token_budget_batches(rows.lengths[step_rows], MICRO_TOKENS):
        loss_sum = nll_sum(optimizer.compute, rows, [step_rows[i] for i in picked], pad_id=pad_id)
        optimizer.backward(loss_sum / max(1, tokens))
        total += float(loss_sum.detach())
    return StepSums(
        means={"loss/lm": (total, tokens)},
        amounts={"tokens": float(rows.lengths[step_rows].sum())},
    )


@torch.inference_mode()
def heldout_loss(model: PreTrainedModel, rows: TokenRows, *, pad_id: int) -> float:
    """Mean negative log-likelihood of a trained token, in nats; dropout off."""
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for picked in token_budget_batches(rows.lengths, MICRO_TOKENS):
        total += float(nll_sum(model, rows, picked, pad_id=pad_id))
        tokens += sum(int(rows.trained_mask(row)[1:].sum()) for row in picked)
    model.train(was_training)
    return total / max(1, tokens)


def nll_sum(model: PreTrainedModel, rows: TokenRows, picked: list[int], *, pad_id: int) -> Tensor:
    """Sum over rows and trained tokens of −log p(token | those before it), float32.

    Padding is on the right, where a causal model never looks, so no mask is given; logits are made
    for trained positions alone.
    """
    device = next(model.parameters()).device
    input_ids_BT, _ = pad_right([rows.token_ids[row] for row in picked], pad_id)
    trained_BT, _ = pad_right([rows.trained_mask(row).astype(np.int32) for row in picked], 0)
    input_ids_BT, trained_BT = input_ids_BT.to(device), trained_BT.to(device).bool()
    hidden_BTD = model.base_model(input_ids=input_ids_BT, use_cache=False).last_hidden_state
    predicts_BT = torch.zeros_like(trained_BT)
    predicts_BT[:, :-1] = trained_BT[:, 1:]
    index_N = predicts_BT.flatten().nonzero()[:, 0]
    logprobs_N, _ = response_logprobs(
        take_positions(hidden_BTD, index_N),
        model.get_output_embeddings(),
        input_ids_BT.flatten()[index_N + 1],
        shape=HeadShape.of(model.config),
    )
    return -logprobs_N.sum()


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: list[Text], max_tokens: int) -> TokenRows:
    return tokenise_pairs(
        tokenizer,
        [text.prompt for text in texts],
        [text.response for text in texts],
        max_tokens=max_tokens,
    )
