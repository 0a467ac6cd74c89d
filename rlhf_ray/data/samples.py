"""Several responses of a policy to each prompt: what sampling wrote, or a user collected."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf_ray.data.chat import ChatTemplate, as_messages, render
from rlhf_ray.data.rows import (
    BadRows,
    OnBadRow,
    Row,
    RowFault,
    column_of,
    filled_text_of,
    read_rows,
    text_of,
)


@dataclass(frozen=True, slots=True)
class Samples:
    """`responses` (any number) to `prompt`, which is as the model reads it."""

    prompt: str
    responses: tuple[str, ...]


def load_samples(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template: ChatTemplate = "auto",
    least: int = 2,
    on_bad_row: OnBadRow = "fail",
) -> list[Samples]:
    """Rows of `prompt` (a text or messages) and `responses`, at least `least` of them.

    Prompts are rendered as PPO renders them, unless the row says `"rendered": true`. Raises
    ValueError for a bad row (unless skipped) and where none is left.
    """
    bad = BadRows(on_bad_row)
    found = []
    for row in read_rows(path, bad):
        try:
            found.append(_samples(row, tokenizer, chat_template, least))
        except RowFault as fault:
            bad.add(row.source, row.line, str(fault))
    if not found:
        raise ValueError(f"{path} holds no samples ({bad.count} bad rows): give rows of `prompt` "
                         f"and `responses`")  # fmt: skip
    return found


def write_samples(path: str | Path, samples: Iterable[Samples]) -> None:
    """One prompt a line, marked as rendered."""
    with Path(path).open("w", encoding="utf-8") as file:
        for one in samples:
            row = {"prompt": one.prompt, "responses": one.responses, "rendered": True}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _samples(
    row: Row, tokenizer: PreTrainedTokenizerBase, chat_template: ChatTemplate, least: int
) -> Samples:
    if isinstance(row.value, str):
        raise RowFault("samples are objects with prompt and responses, in .jsonl or .parquet")
    prompt, responses = column_of(row.value, "prompt"), column_of(row.value, "responses")
    if not isinstance(responses, list) or len(responses) < least:
        raise RowFault(f"'responses' is a list of at least {least}")
    texts = tuple(text_of(text, f"response {i}") for i, text in enumerate(responses, 1))
    if isinstance(prompt, list):
        return Samples(render(as_messages(prompt), tokenizer, chat_template), texts)
    text = filled_text_of(prompt, "'prompt'") if prompt else ""
    if not text or row.value.get("rendered") is True:
        return Samples(text, texts)
    return Samples(render(text, tokenizer, chat_template), texts)
