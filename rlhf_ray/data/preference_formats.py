"""What a row of ranked responses may look like. A format is told by the keys of its row.

To add a format: write a function from a row to `Parsed` and give it a row in FORMATS.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_ray.data.chat import (
    ANSWER_OPENING,
    Messages,
    as_message,
    as_messages,
    as_prompt,
    asked,
    asked_in_turns,
    asked_turns,
    role_of,
    text_or_messages,
    transcript,
    unanswered,
)
from rlhf_ray.data.escapes import unescape
from rlhf_ray.data.faults import RowFault, filled_text_of, kind_of, text_of
from rlhf_ray.data.ranked_list import Comparison

BEST_FIRST = (1, 2)
ASKING = ("system", "user")
PROMPT = "prompt"
# Of a row without a prompt, columns that would be one.
LIKE_PROMPTS = ("question", "instruction", "query", "input")


@dataclass(frozen=True, slots=True)
class Parsed:
    """One list as its format gives it.

    prompt + response is the whole text, exactly. turns: the conversation that `prompt` holds, where
    it is one, for tokenizers with a chat template.
    """

    prompt: str
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    turns: Messages = ()
    annotator: str | None = None
    time: str | None = None
    pairs: tuple[Comparison, ...] = ()

    @property
    def group(self) -> str:
        """What lists of one conversation share: the user's first turn, or the prompt itself."""
        return next((text for role, text in self.turns if role == "user"), self.prompt)


@dataclass(frozen=True, slots=True)
class Format:
    """keys: a row that has them all is of this format. parse: of a row, and its prompt's column."""

    keys: frozenset[str]
    parse: Callable[[Mapping[str, Any], str], Parsed]

    def columns(self, prompt: str) -> frozenset[str]:
        """`keys` of rows whose prompt is in the column `prompt`."""
        return frozenset(prompt if key == PROMPT else key for key in self.keys)


def parse_cells(line: str) -> Parsed:
    """Tab-separated texts, best first."""
    cells = line.split("\t")
    if len(cells) < 2:
        raise RowFault("one cell: a ranked list has at least two texts, separated by tabs")
    responses = tuple(filled_text_of(unescape(c), f"cell {i}") for i, c in enumerate(cells, 1))
    return Parsed("", responses, tuple(range(1, len(cells) + 1)))


def is_ranking(row: Mapping[str, Any], *, prompt_column: str = PROMPT) -> bool:
    """Whether the row has the columns of a format."""
    return _format_of(row, prompt_column_of(row, prompt_column)) is not None


def parse_row(row: Mapping[str, Any], *, prompt_column: str = PROMPT) -> Parsed:
    """The list of a row with named columns; RowFault where no format fits or the row is bad.

    prompt_column: where the prompt is; in `prompt` where the row has no such column.
    """
    prompt = prompt_column_of(row, prompt_column)
    form = _format_of(row, prompt)
    if form is None:
        raise RowFault(_unknown(row, prompt))
    parsed = form.parse(row, prompt)
    if not parsed.prompt:
        _refuse_stray_prompt(row)
    return _with_pairs(parsed, row)


def prompt_column_of(row: Mapping[str, Any], named: str) -> str:
    """The column that a row's prompt is in: the one named, `prompt` where it has no such."""
    return named if row.get(named) is not None else PROMPT


def _format_of(row: Mapping[str, Any], prompt: str) -> Format | None:
    there = {key for key, value in row.items() if value is not None}
    return next((form for form in FORMATS.values() if form.columns(prompt) <= there), None)


def _unknown(row: Mapping[str, Any], prompt: str) -> str:
    """Why no format fits: what is null of the one that comes nearest, or the columns of all."""
    empty = [
        sorted(key for key in form.columns(prompt) if row[key] is None)
        for form in FORMATS.values()
        if form.columns(prompt) <= row.keys()
    ]
    if empty:
        nearest = min(empty, key=len)
        names = " and ".join(map(repr, nearest))
        return f"{names} {'is' if len(nearest) == 1 else 'are'} nothing (null)"
    known = "; ".join(
        f"{name}: {', '.join(sorted(form.columns(prompt)))}" for name, form in FORMATS.items()
    )
    return f"the columns {sorted(map(str, row))} fit no format of ranked lists ({known})"


def _refuse_stray_prompt(row: Mapping[str, Any]) -> None:
    """RowFault where a row without a prompt has a text that must be one: it would be lost."""
    for name in LIKE_PROMPTS:
        if isinstance(row.get(name), str) and row[name].strip():
            raise RowFault(
                f"there is no prompt, and a column {name!r}: name it (data.prompt_column: {name}), "
                f"or take it out"
            )


def _with_pairs(parsed: Parsed, row: Mapping[str, Any]) -> Parsed:
    """`parsed` with the comparisons that `pairs` lists, or with the `margin` of a pair."""
    listed = row.get("pairs")
    if listed is None and row.get("margin") is None:
        return parsed
    if listed is None:
        if sorted(parsed.ranks) != [1, 2]:
            raise RowFault("'margin' is of a pair, and this list is none: give 'pairs'")
        best, worst = parsed.ranks.index(1), parsed.ranks.index(2)
        listed = [{"better": best, "worse": worst, "margin": row["margin"]}]
    if not isinstance(listed, list) or not listed or not all(map(_is_object, listed)):
        raise RowFault("'pairs' is a list of objects with better and worse")
    return replace(parsed, pairs=tuple(_comparison(one, len(parsed.responses)) for one in listed))


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _comparison(value: Mapping[str, Any], responses: int) -> Comparison:
    places: tuple[Any, Any] = value.get("better"), value.get("worse")
    if not all(type(place) is int and 0 <= place < responses for place in places):
        raise RowFault(
            f"better {places[0]!r:.40} and worse {places[1]!r:.40} of a pair are places among its "
            f"{responses} responses, counted from 0"
        )
    numbers = value.get("margin", 0.0), value.get("target", 1.0)
    if not all(type(number) in (int, float) for number in numbers):
        raise RowFault(f"margin {numbers[0]!r:.40} and target {numbers[1]!r:.40} are numbers")
    try:
        return Comparison(*places, *map(float, numbers))
    except (ValueError, OverflowError) as error:
        raise RowFault(str(error)) from None


def _ranked(row: Mapping[str, Any], prompt: str) -> Parsed:
    """`{prompt, responses, ranks, annotator, time}`."""
    responses, ranks = row["responses"], row["ranks"]
    for key in ("responses", "ranks"):
        if not isinstance(row[key], list):
            raise RowFault(f"{key!r} is {kind_of(row[key])}: 'responses' and 'ranks' are lists")
    if len(responses) != len(ranks):
        raise RowFault(f"{len(responses)} responses and {len(ranks)} ranks")
    for rank in ranks:
        if type(rank) is not int:  # a bool is an int to isinstance
            raise RowFault(f"the rank {rank!r:.40} is not a whole number")
        if not -(2**63) <= rank < 2**63:
            raise RowFault(f"the rank {rank!r:.40} has more than 64 bits")
    texts = tuple(filled_text_of(text, f"response {i}") for i, text in enumerate(responses, 1))
    text, turns = _prompt_of(row, prompt)
    return Parsed(text, texts, tuple(ranks), turns, _note(row, "annotator"), _note(row, "time"))


def _selected(row: Mapping[str, Any], prompt: str) -> Parsed:
    """`{prompt, selected, rejected}`, all texts."""
    text, turns = _prompt_of(row, prompt)
    pair = tuple(filled_text_of(row[key], repr(key)) for key in ("selected", "rejected"))
    return Parsed(text, pair, BEST_FIRST, turns)


def _context(row: Mapping[str, Any], _prompt: str) -> Parsed:
    """hh_rlhf_cn: `{context: [message, …], chosen: message, rejected: message}`."""
    context = unanswered(as_messages(row["context"], "'context'"), "'context'")
    chosen, rejected = (as_message(row[key], repr(key)) for key in ("chosen", "rejected"))
    return _conversation(asked(context), (chosen,), (rejected,))


def _explicit(row: Mapping[str, Any], prompt: str) -> Parsed:
    """TRL's explicit prompt: texts, or messages."""
    chosen, rejected = (text_or_messages(row[key], repr(key)) for key in ("chosen", "rejected"))
    if isinstance(chosen, str) or isinstance(rejected, str):
        text, turns = _prompt_of(row, prompt)
        pair = tuple(filled_text_of(row[key], repr(key)) for key in ("chosen", "rejected"))
        return Parsed(text, pair, BEST_FIRST, turns)
    if all(role_of(side[0]) in ASKING for side in (chosen, rejected)):
        return _shared_messages(chosen, rejected)  # both hold the prompt as well
    context = asked_in_turns(as_prompt(row[prompt], repr(prompt)), repr(prompt))
    return _conversation(context, chosen, rejected)


def _transcripts(row: Mapping[str, Any], _prompt: str) -> Parsed:
    """`{chosen, rejected}`: whole transcripts or conversations; the prompt is what they share.

    The last turn may be empty (the data of hh-rlhf has such rows): the assistant said nothing.
    """
    chosen, rejected = (text_or_messages(row[key], repr(key)) for key in ("chosen", "rejected"))
    if not isinstance(chosen, str) and not isinstance(rejected, str):
        return _shared_messages(chosen, rejected)
    chosen, rejected = (filled_text_of(row[key], repr(key)) for key in ("chosen", "rejected"))
    answers = list(ANSWER_OPENING.finditer(chosen[: shared_length(chosen, rejected)]))
    cut = answers[-1].end() if answers else 0
    prompt, pair = chosen[:cut], (chosen[cut:], rejected[cut:])
    return Parsed(prompt, pair, BEST_FIRST, asked_turns(prompt))


def _shared_messages(chosen: Messages, rejected: Messages) -> Parsed:
    """Two conversations: the prompt is how they begin alike, up to an answer.

    Where they part with a question, the answer before it parts them.
    """
    shared = min(shared_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    while shared and all(role_of(side[shared]) in ASKING for side in (chosen, rejected)):
        shared -= 1
    if not shared:
        raise RowFault(
            "chosen and rejected do not begin with the same question: both hold the prompt, or "
            "'prompt' does"
        )
    return _conversation(asked(chosen[:shared]), chosen[shared:], rejected[shared:])


def _conversation(context: tuple[str, Messages], chosen: Messages, rejected: Messages) -> Parsed:
    """Answers as transcripts, each without the role that opens it: the prompt ends with that."""
    role = role_of(chosen[0])
    if role_of(rejected[0]) != role:
        raise RowFault(f"chosen is by {chosen[0][0]!r} and rejected by {rejected[0][0]!r}")
    pair = tuple(transcript(side).removeprefix(f"\n\n{role}:") for side in (chosen, rejected))
    prompt, turns = context
    return Parsed(prompt, pair, BEST_FIRST, turns)


def _prompt_of(row: Mapping[str, Any], column: str) -> tuple[str, Messages]:
    """Prompt and its turns, of messages or of a text, which may be a transcript up to an answer."""
    if row.get(column) is None:
        return "", ()
    return asked(as_prompt(row[column], repr(column)))


def shared_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many elements `a` and `b` begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def _note(row: Mapping[str, Any], key: str) -> str | None:
    return None if row.get(key) is None else text_of(row[key], repr(key))


FORMATS: dict[str, Format] = {
    "ranked": Format(frozenset({"responses", "ranks"}), _ranked),
    "selected": Format(frozenset({"selected", "rejected"}), _selected),
    "context": Format(frozenset({"context", "chosen", "rejected"}), _context),
    "explicit": Format(frozenset({PROMPT, "chosen", "rejected"}), _explicit),
    "transcripts": Format(frozenset({"chosen", "rejected"}), _transcripts),
}
