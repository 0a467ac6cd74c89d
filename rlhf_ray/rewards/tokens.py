"""Prompt and response as the token ids of a reward model, never as those of another tokenizer."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_ray.data.tokenise import tokenise_pairs
from rlhf_ray.rewards.protocol import Responses


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for two tokenizers exactly if every id means the same to both.

    SHA-256 over all (token, id) pairs, added and special tokens among them, and which ids begin and
    end a text. (What pads is left out: padding is never attended.)
    """
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    content = json.dumps([sorted(tokenizer.get_vocab().items()), ends])
    return hashlib.sha256(content.encode()).hexdigest()


def same_ids(batch: Responses, *, max_tokens: int, eos_token_id: int) -> list[np.ndarray]:
    """The policy's own ids, prompt + response, int32 rows cut to `max_tokens`.

    Whichever token a response ended with, the rows of a reward model end with `eos_token_id`.
    """
    rows = zip(batch.prompt_token_ids, batch.response_token_ids, batch.ended, strict=True)
    return [
        cut(prompt, response, max_tokens=max_tokens, end=eos_token_id if ended else None)
        for prompt, response, ended in rows
    ]


def cut(
    prompt: Sequence[int], response: Sequence[int], *, max_tokens: int, end: int | None
) -> np.ndarray:
    """int32, at most `max_tokens`: cut from the prompt's left, then from the response's right.

    end: what stands for the last token of a response that has ended, and is not cut; else None.
    """
    prompt, response = list(prompt), list(response)
    if end is not None:
        response = [*response[:-1][: max_tokens - 1], end]
    response = response[:max_tokens]
    prompt = prompt[max(0, len(prompt) + len(response) - max_tokens) :]
    return np.array(prompt + response, dtype=np.int32)


def retokenised(
    prompts: Sequence[str],
    batch: Responses,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
) -> list[np.ndarray]:
    """The text in the ids of `tokenizer`, as in the reward model's training; int32 rows, cut alike.

    prompts: those of the batch, as this tokenizer's model reads them. Its EOS is appended to the
    responses that have ended.
    """
    rows: dict[int, np.ndarray] = {}
    for append_eos in (True, False):
        indices = [i for i, has_eos in enumerate(batch.ended) if has_eos == append_eos]
        tokenised = tokenise_pairs(
            tokenizer,
            [prompts[i] for i in indices],
            [batch.responses[i] for i in indices],
            max_tokens=max_tokens,
            append_eos=append_eos,
        )
        rows |= zip(indices, tokenised.token_ids, strict=True)
    return [rows[i] for i in range(len(batch))]
