"""Prompt and response into one row of tokens: cut where it must be, its EOS kept.

Which tokens are real is known from lengths alone. A pad id is never compared with: in many models
pad == eos, and the EOS is trained on and scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenRows:
    """N rows `prompt + response + EOS`.

    token_ids: int32; prompt_lengths: int64 [N], 0 for a plain text; cut: rows that lost tokens.
    """

    token_ids: list[np.ndarray]
    prompt_lengths: np.ndarray
    cut: int

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]."""
        return np.fromiter(map(len, self.token_ids), dtype=np.int64, count=len(self.token_ids))

    def of(self, rows: Sequence[int]) -> "TokenRows":
        """Some rows, in the order given."""
        return TokenRows([self.token_ids[row] for row in rows], self.prompt_lengths[list(rows)], 0)

    def trained_mask(self, row: int) -> np.ndarray:
        """bool [length]: the tokens that SFT trains: the response and its EOS; all of a plain text.

        The first token of a row has nothing before it, so a loss cannot use it.
        """
        mask: np.ndarray = np.arange(len(self.token_ids[row])) >= self.prompt_lengths[row]
        return mask


def tokenise_pairs(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    max_tokens: int,
    append_eos: bool = True,
) -> TokenRows:
    """Rows of at most `max_tokens`: the prompt is cut from the left, then the response from the
    right; BOS (where the tokenizer has one) and EOS stay.

    Prompt and response are tokenised apart, as when the response was sampled after the prompt. A
    prompt that begins with the BOS (chat templates write it) gets no second one.
    """
    eos = [eos_id_of(tokenizer)] if append_eos else []
    bos = bos_ids_of(tokenizer)
    if max_tokens <= len(bos) + len(eos):
        raise ValueError(f"max_tokens {max_tokens} leaves no room beside BOS and EOS: give more")
    prompt_ids, response_ids = encode(tokenizer, prompts), encode(tokenizer, responses)
    room = max_tokens - len(bos) - len(eos)
    rows: list[np.ndarray] = []
    prompt_lengths = np.zeros(len(prompts), dtype=np.int64)
    cut = 0
    for i, (prompt, response) in enumerate(zip(prompt_ids, response_ids, strict=True)):
        if bos and prompt[:1] == bos:
            prompt = prompt[1:]
        keep_prompt = min(len(prompt), max(0, room - len(response)))
        cut += len(prompt) + len(response) > room
        kept = [*bos, *prompt[len(prompt) - keep_prompt :], *response[:room], *eos]
        rows.append(np.array(kept, dtype=np.int32))
        prompt_lengths[i] = len(bos) + keep_prompt if prompt else 0
    return TokenRows(rows, prompt_lengths, cut)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens added and without a warning of its length."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    return ids


def bos_ids_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`[bos]` where this tokenizer opens every text with one, else `[]`."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def eos_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The EOS id; ValueError where the tokenizer has none."""
    eos: int | None = tokenizer.eos_token_id
    if eos is None:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no EOS token, so a response could never "
            f"end: set its eos_token and save it"
        )
    return eos
