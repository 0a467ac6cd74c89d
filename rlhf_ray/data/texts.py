"""Texts for SFT: plain texts, or prompts with their responses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_ray.data.chat import ChatTemplate, render
from rlhf_ray.data.preference_formats import is_ranking, parse_row
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
from rlhf_ray.data.split import heldout_mask


@dataclass(frozen=True, slots=True)
class Text:
    """What SFT learns to write: `response` after `prompt`; a plain text has prompt ""."""

    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class TextSet(Sequence[Text]):
    """The texts of a file, and how many of its rows were bad."""

    texts: tuple[Text, ...]
    bad_rows: int

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: Any) -> Any:
        return self.texts[index]


def load_texts(
    path: str | Path,
    *,
    text_column: str = "text",
    prompt_column: str = "prompt",
    response_column: str = "response",
    on_bad_row: OnBadRow = "fail",
) -> TextSet:
    """Texts of .txt (a line each), .tsv (each cell one), .jsonl, .parquet or a data set.

    In the last three a row has `text_column`, or `prompt_column` and `response_column`, or is a
    ranking in any format: then its best response is the text after its prompt. Raises ValueError
    for a bad row (unless skipped) and where no text is left.
    """
    bad = BadRows(on_bad_row)
    texts: list[Text] = []
    for row in read_rows(path, bad):
        try:
            texts.extend(_texts_of(row, text_column, prompt_column, response_column))
        except RowFault as fault:
            bad.add(row.source, row.line, str(fault))
    if not texts:
        raise ValueError(
            f"{path} holds no text ({bad.count} bad rows): give a file with texts in it"
        )
    return TextSet(tuple(texts), bad.count)


def split_texts(texts: Sequence[Text], fraction: float, seed: int) -> tuple[list[Text], list[Text]]:
    """`(train, heldout)`: about `fraction` held out; equal texts stay on one side."""
    mask = heldout_mask([text.prompt + text.response for text in texts], fraction, seed)
    train = [text for text, held in zip(texts, mask, strict=True) if not held]
    return train, [text for text, held in zip(texts, mask, strict=True) if held]


def with_template(
    texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, chat_template: ChatTemplate
) -> list[Text]:
    """`texts` with their prompts as PPO will render them; plain texts stay."""
    return [
        Text(render(text.prompt, tokenizer, chat_template), text.response) if text.prompt else text
        for text in texts
    ]


def _texts_of(row: Row, text: str, prompt: str, response: str) -> Iterator[Text]:
    if isinstance(row.value, str):
        for i, cell in enumerate(row.cells(), 1):
            yield Text("", filled_text_of(cell, f"cell {i}" if "\t" in row.value else "the text"))
    elif text in row.value:
        yield Text("", filled_text_of(row.value[text], repr(text)))
    elif response in row.value:
        shown = text_of(column_of(row.value, prompt), repr(prompt))
        yield Text(shown, filled_text_of(row.value[response], repr(response)))
    elif is_ranking(row.value):
        parsed = parse_row(row.value)
        best = min(zip(parsed.ranks, range(len(parsed.ranks)), parsed.responses, strict=True))[2]
        yield Text(parsed.prompt, filled_text_of(best, "the best response"))
    else:
        raise RowFault(
            f"neither {text!r}, nor {prompt!r} and {response!r}, nor a ranking among the columns "
            f"{sorted(map(str, row.value))}"
        )
