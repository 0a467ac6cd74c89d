"""Prompts for PPO: loaded, rendered, tokenised, cut, split; and which of them a step uses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_ray.config import Data
from rlhf_ray.data.chat import Messages, as_prompt, render
from rlhf_ray.data.faults import BadRows, RowFault, column_of, filled_text_of
from rlhf_ray.data.ids import stable_hash
from rlhf_ray.data.rows import Row, read_rows
from rlhf_ray.data.split import heldout_mask
from rlhf_ray.data.tokenise import bos_ids_of, encode


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, uncut but for its tokens.

    prompt_id: its place in the split. text: as the policy reads it, rendered. asked: as it was
    given, for whom another template, or none, is right; None where tokens are all there is.
    """

    prompt_id: int
    text: str
    token_ids: tuple[int, ...]
    asked: str | Messages | None = None


@dataclass(frozen=True, slots=True)
class Prompts:
    """Training and held-out prompts; no text is in both.

    cut: how many were cut from the left. bad_rows: how many rows were skipped; first_bad: file,
    line and fault of the first. overlap: how many training prompts were left out because
    `heldout_prompts` has them.
    """

    train: Sequence[Prompt]
    heldout: Sequence[Prompt]
    cut: int
    bad_rows: int
    overlap: int = 0
    first_bad: str | None = None


def load_prompts(data: Data, tokenizer: PreTrainedTokenizerBase, seed: int) -> Prompts:
    """Prompts as `data` describes them. Raises ValueError for a bad row and where none is left."""
    if data.prompts is None:
        raise ValueError("there are no prompts: give --data.prompts FILE")
    bad = BadRows(data.on_bad_row)
    texts = _load(data.prompts, data, tokenizer, seed, bad)
    overlap = 0
    if data.heldout_prompts is not None:
        heldout = _load(data.heldout_prompts, data, tokenizer, seed, bad)
        known = {text for text, _ in heldout}
        train = [pair for pair in texts if pair[0] not in known]
        overlap = len(texts) - len(train)
        if not train:
            raise ValueError(f"every prompt of {data.prompts} is in {data.heldout_prompts} too")
    else:
        mask = heldout_mask(
            [text for text, _ in texts],
            data.heldout_fraction,
            seed,
            source=data.prompts,
            what="prompt",
            instead="others to evaluate on: --data.heldout-prompts FILE",
        )
        train = [pair for pair, held in zip(texts, mask, strict=True) if not held]
        heldout = [pair for pair, held in zip(texts, mask, strict=True) if held]
    train_prompts, train_cut = _tokenise(train, tokenizer, data.max_prompt_tokens)
    heldout_prompts, heldout_cut = _tokenise(heldout, tokenizer, data.max_prompt_tokens)
    cut = train_cut + heldout_cut
    return Prompts(train_prompts, heldout_prompts, cut, bad.count, overlap, bad.first)


def batch_of_step(n_prompts: int, batch: int, seed: int, step: int) -> list[int]:
    """Prompt ids of a step: a function of its arguments alone, so a resumed run needs no cursor.

    Each epoch is a seeded permutation; what is left after the last whole batch is left out, so a
    step never holds a prompt twice. Raises ValueError where `batch` exceeds `n_prompts`.
    """
    if not 1 <= batch <= n_prompts:
        raise ValueError(
            f"a step takes {batch} different prompts and there are {n_prompts} for training: "
            f"set --ppo.prompts to at most {n_prompts}, or give more prompts in --data.prompts"
        )
    epoch, place = divmod(step, n_prompts // batch)
    ids: list[int] = _permutation(n_prompts, seed, epoch)[place * batch :][:batch].tolist()
    return ids


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    rng = np.random.Generator(np.random.PCG64(stable_hash(seed, "prompts", epoch)))
    return rng.permutation(n)


def _load(
    path: str, data: Data, tokenizer: PreTrainedTokenizerBase, seed: int, bad: BadRows
) -> list[tuple[str, str | Messages]]:
    """(rendered, as given) prompts of one file, in its order; prefixes of texts once each."""
    texts: list[tuple[str, str | Messages]] = []
    here = BadRows(data.on_bad_row)
    for row in read_rows(path, here):
        try:
            prompts = list(_prompts_of(row, data, seed))
            texts += [(render(prompt, tokenizer, data.chat_template), prompt) for prompt in prompts]
        except RowFault as fault:
            here.add(row.source, row.line, str(fault))
    if not texts:
        raise here.none_left(path, "prompt")
    bad.include(here)
    return list(dict.fromkeys(texts)) if data.prompt_prefix_chars else texts


def _prompts_of(row: Row, data: Data, seed: int) -> Iterator[str | Messages]:
    if data.prompt_prefix_chars is None:
        if isinstance(row.value, str):
            yield filled_text_of(row.cells()[0], "the prompt")
            return
        what = repr(data.prompt_column)
        prompt = as_prompt(column_of(row.value, data.prompt_column), what)
        yield filled_text_of(prompt, what) if isinstance(prompt, str) else prompt
        return
    low, high = data.prompt_prefix_chars
    if not 1 <= low <= high:
        raise ValueError(f"data.prompt_prefix_chars is {low}, {high}: it is a ≤ b, both at least 1")
    for i, text in enumerate(_whole_texts(row, data)):
        length = low + stable_hash(seed, "prefix", row.line, i) % (high - low + 1)
        yield filled_text_of(text[:length], f"the first {length} characters")


def _whole_texts(row: Row, data: Data) -> list[str]:
    """The texts of a row of which prompts are the beginnings."""
    if isinstance(row.value, str):
        return row.cells()
    name = data.text_column if data.text_column in row.value else data.prompt_column
    return [filled_text_of(column_of(row.value, name), repr(name))]


def _tokenise(
    texts: Sequence[tuple[str, str | Messages]],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
) -> tuple[list[Prompt], int]:
    """Prompts of at most `max_tokens`, cut from the left (BOS stays), and how many were cut.

    One BOS each, whether the tokenizer gives it or a chat template has written it.
    """
    bos = bos_ids_of(tokenizer)
    room = max_tokens - len(bos)
    if room < 1:
        raise ValueError(
            f"data.max_prompt_tokens is {max_tokens}: a prompt needs at least one token"
        )
    prompts = []
    cut = 0
    for i, ids in enumerate(encode(tokenizer, [text for text, _ in texts])):
        body = ids[1:] if bos and ids[:1] == bos else ids
        cut += len(body) > room
        text, given = texts[i]
        prompts.append(Prompt(i, text, tuple(bos + body[-room:]), given))
    return prompts, cut
