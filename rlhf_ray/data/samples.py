"""Several responses of a policy to each prompt: what sampling wrote, or a user collected."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf_ray.data.chat import ChatTemplate, as_prompt, render
from rlhf_ray.data.faults import (
    ON_BAD_ROW,
    BadRows,
    Loaded,
    OnBadRow,
    RowFault,
    column_of,
    filled_text_of,
    kind_of,
    text_of,
)
from rlhf_ray.data.preference_formats import PROMPT, prompt_column_of
from rlhf_ray.data.rows import Row, read_rows
from rlhf_ray.files import replacing


@dataclass(frozen=True, slots=True)
class Samples:
    """`responses` (any number) to `prompt`, which is as the model reads it."""

    prompt: str
    responses: tuple[str, ...]


SampleSet = Loaded[Samples]


def load_samples(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template: ChatTemplate = "auto",
    least: int = 2,
    on_bad_row: OnBadRow = "fail",
    prompt_column: str = PROMPT,
    flag: str = ON_BAD_ROW,
) -> SampleSet:
    """Rows of a prompt (a text or messages) and `responses`, at least `least` of them.

    Prompts are rendered as PPO renders them, unless the row says `"rendered": true`.
    prompt_column: where they are; in `prompt` where a row has no such column. flag: of on_bad_row.
    Raises ValueError for a bad row (unless skipped) and where none is left.
    """
    bad = BadRows(on_bad_row, flag)
    found = []
    for row in read_rows(path, bad):
        try:
            found.append(_samples(row, prompt_column, tokenizer, chat_template, least))
        except RowFault as fault:
            bad.add(row.source, row.line, str(fault))
    if not found:
        raise bad.none_left(path, "samples")
    return SampleSet(tuple(found), bad.count, bad.first)


def write_samples(path: str | Path, samples: Iterable[Samples]) -> None:
    """One prompt a line, marked as rendered."""
    with replacing(path) as aside, aside.open("w", encoding="utf-8") as file:
        for one in samples:
            row = {"prompt": one.prompt, "responses": one.responses, "rendered": True}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _samples(
    row: Row,
    prompt_column: str,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: ChatTemplate,
    least: int,
) -> Samples:
    if isinstance(row.value, str):
        raise RowFault("samples are objects with prompt and responses, in .jsonl or .parquet")
    column = prompt_column_of(row.value, prompt_column)
    prompt, responses = column_of(row.value, column), column_of(row.value, "responses")
    if not isinstance(responses, list):
        raise RowFault(f"'responses' is {kind_of(responses)}: give a list of texts")
    if len(responses) < least:
        raise RowFault(f"'responses' are {len(responses)}: give at least {least}")
    texts = tuple(text_of(text, f"response {i}") for i, text in enumerate(responses, 1))
    if prompt is None or prompt == "":
        return Samples("", texts)
    asked = as_prompt(prompt, repr(column))
    if isinstance(asked, str):
        filled_text_of(asked, repr(column))
        if row.value.get("rendered") is True:
            return Samples(asked, texts)
    return Samples(render(asked, tokenizer, chat_template), texts)
