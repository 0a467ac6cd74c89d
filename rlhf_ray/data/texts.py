"""Texts for SFT: plain texts, prompts with their responses, conversations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_ray.data.chat import (
    ANSWERER,
    ChatTemplate,
    Messages,
    as_messages,
    as_prompt,
    asked,
    asked_in_turns,
    before_answer,
    chat_roles,
    render,
    role_of,
    text_or_messages,
    uses_template,
)
from rlhf_ray.data.faults import (
    ON_BAD_ROW,
    BadRows,
    Loaded,
    OnBadRow,
    RowFault,
    column_of,
    filled_text_of,
)
from rlhf_ray.data.preference_formats import PROMPT, is_ranking, parse_row, prompt_column_of
from rlhf_ray.data.rows import Row, read_rows
from rlhf_ray.data.split import heldout_mask

COMPLETION = "completion"
CONVERSATIONS = ("messages", "conversations")


@dataclass(frozen=True, slots=True)
class Text:
    """What SFT learns to write: `response` after `prompt`; a plain text has prompt "".

    turns: the conversation that `prompt` holds, where it is one, for tokenizers with a chat
    template. source, line: where it is from.
    """

    prompt: str
    response: str
    turns: Messages = ()
    source: str = field(default="", compare=False, repr=False)
    line: int = field(default=0, compare=False, repr=False)


TextSet = Loaded[Text]


def load_texts(
    path: str | Path,
    *,
    text_column: str = "text",
    prompt_column: str = PROMPT,
    response_column: str = "response",
    on_bad_row: OnBadRow = "fail",
    flag: str = ON_BAD_ROW,
    called: str | None = None,
) -> TextSet:
    """Texts of .txt (a line each), .tsv (each cell one), .jsonl, .parquet or a data set.

    In the last three a row has `text_column`; or `prompt_column` and `response_column` or
    `completion`; or `messages` or `conversations`, of which the last answer is learnt; or it is a
    ranking in any format: then its best response is the text after its prompt. flag: of on_bad_row.
    called: the source's name in messages, its path unless given. Raises ValueError for a bad row
    (unless skipped) and where no text is left.
    """
    bad = BadRows(on_bad_row, flag)
    texts: list[Text] = []
    for row in read_rows(path, bad, called=called):
        try:
            found = list(_texts_of(row, text_column, prompt_column, response_column))
        except RowFault as fault:
            bad.add(row.source, row.line, str(fault))
        else:
            texts += [replace(text, source=row.source, line=row.line) for text in found]
    if not texts:
        raise bad.none_left(called or path, "text")
    return TextSet(tuple(texts), bad.count, bad.first)


def split_texts(texts: Sequence[Text], fraction: float, seed: int) -> tuple[list[Text], list[Text]]:
    """`(train, heldout)`: about `fraction` held out; equal texts stay on one side."""
    keys = [text.prompt + text.response for text in texts]
    mask = heldout_mask(keys, fraction, seed, source=texts[0].source if texts else "")
    train = [text for text, held in zip(texts, mask, strict=True) if not held]
    return train, [text for text, held in zip(texts, mask, strict=True) if held]


def with_template(
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    chat_template: ChatTemplate,
    bad: BadRows | None = None,
) -> list[Text]:
    """`texts` with their prompts as PPO will render them; plain texts stay.

    bad: where those that the template refuses are counted; without it they are a ValueError.
    """
    bad = BadRows(flag="") if bad is None else bad
    rendered = []
    for text in texts:
        try:
            rendered.append(as_read(text, tokenizer, chat_template))
        except RowFault as fault:
            bad.add(text.source, text.line, str(fault))
    return rendered


def as_read(text: Text, tokenizer: PreTrainedTokenizerBase, chat_template: ChatTemplate) -> Text:
    """`text` with its prompt as the model reads it. RowFault: the template refuses it."""
    if not text.prompt or not uses_template(tokenizer, chat_template):
        return text
    if not text.turns:
        return replace(text, prompt=render(text.prompt, tokenizer, chat_template))
    prompt = render(text.turns, tokenizer, chat_template)
    return replace(text, prompt=prompt, response=text.response.removeprefix(" "), turns=())


def _texts_of(row: Row, text: str, prompt: str, response: str) -> Iterator[Text]:
    value = row.value
    if isinstance(value, str):
        for i, cell in enumerate(row.cells(), 1):
            yield Text("", filled_text_of(cell, f"cell {i}" if "\t" in value else "the text"))
        return
    there = {key for key, held in value.items() if held is not None}
    answer = response if response in there else COMPLETION
    conversation = next((name for name in CONVERSATIONS if name in there), None)
    if text in there:
        yield Text("", filled_text_of(value[text], repr(text)))
    elif answer in there:
        yield _answered(value, prompt_column_of(value, prompt), answer)
    elif conversation is not None:
        yield _last_answer(as_messages(value[conversation], repr(conversation)), conversation)
    elif is_ranking(value, prompt_column=prompt):
        yield _best(value, prompt)
    else:
        raise RowFault(_unknown(value, text, prompt, response))


def _answered(row: Mapping[str, Any], prompt: str, answer: str) -> Text:
    """Prompt and response, each a text or messages."""
    context = as_prompt(column_of(row, prompt), repr(prompt))
    answered = text_or_messages(row[answer], repr(answer))
    if isinstance(answered, str):
        text, turns = asked(context)
        return Text(text, filled_text_of(answered, repr(answer)), turns)
    text, turns = asked_in_turns(context, repr(prompt))
    found = _last_answer(turns + answered, answer)
    # A prompt that was a transcript stays as it was written: PPO reads it so without a template.
    return replace(found, prompt=found.prompt.replace(before_answer(turns), text, 1))


def _last_answer(messages: Messages, column: str) -> Text:
    """The answer that ends a conversation, after what was said before it."""
    *context, (role, answer) = messages
    if role_of(messages[-1]) != ANSWERER:
        raise RowFault(
            f"{column!r} ends with a message by {role!r}: what is learnt is the {ANSWERER}'s "
            f"answer at its end"
        )
    if not context:
        raise RowFault(f"{column!r} is an answer alone: a message to answer stands before it")
    response = " " + filled_text_of(answer, f"the last message of {column!r}")
    return Text(before_answer(tuple(context)), response, chat_roles(tuple(context)))


def _best(row: Mapping[str, Any], prompt: str) -> Text:
    """The best response of a ranking."""
    parsed = parse_row(row, prompt_column=prompt)
    best = min(zip(parsed.ranks, range(len(parsed.ranks)), parsed.responses, strict=True))[2]
    return Text(parsed.prompt, filled_text_of(best, "the best response"), parsed.turns)


def _unknown(row: Mapping[str, Any], text: str, prompt: str, response: str) -> str:
    """Why no text is to be had of a row."""
    known = (text, response, COMPLETION, *CONVERSATIONS)
    if empty := [name for name in known if name in row]:
        return f"{empty[0]!r} is nothing (null)"
    return (
        f"neither {text!r}, nor {prompt!r} and {response!r} or {COMPLETION!r}, nor "
        f"{' or '.join(map(repr, CONVERSATIONS))}, nor a ranking among the columns "
        f"{sorted(map(str, row))}"
    )
