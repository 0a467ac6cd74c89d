"""What a row of ranked responses may look like. A format is told by the keys of its row.

To add a format: write a function from a row to `Parsed` and give it a row in FORMATS.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_ray.data.chat import Messages, as_message, as_messages, transcript
from rlhf_ray.data.escapes import unescape
from rlhf_ray.data.ranked_list import Comparison
from rlhf_ray.data.rows import RowFault, filled_text_of, text_of

BEST_FIRST = (1, 2)
ANSWERER = re.compile(r"(?:\A|\n\n)(?:assistant|助手):", re.IGNORECASE)
TURN = re.compile(r"\n\n(human|user|system|assistant|用户|助手): ?", re.IGNORECASE)
CHAT_ROLES = {"human": "user", "用户": "user", "助手": "assistant"}


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
    """keys: a row that has them all is of this format."""

    keys: frozenset[str]
    parse: Callable[[Mapping[str, Any]], Parsed]


def parse_cells(line: str) -> Parsed:
    """Tab-separated texts, best first."""
    cells = line.split("\t")
    if len(cells) < 2:
        raise RowFault("one cell: a ranked list has at least two texts, separated by tabs")
    responses = tuple(filled_text_of(unescape(c), f"cell {i}") for i, c in enumerate(cells, 1))
    return Parsed("", responses, tuple(range(1, len(cells) + 1)))


def is_ranking(row: Mapping[str, Any]) -> bool:
    """Whether the row has the columns of a format."""
    return any(all(row.get(key) is not None for key in form.keys) for form in FORMATS.values())


def parse_row(row: Mapping[str, Any]) -> Parsed:
    """The list of a row with named columns; RowFault where no format fits or the row is bad."""
    for form in FORMATS.values():
        if all(row.get(key) is not None for key in form.keys):
            return _with_pairs(form.parse(row), row)
    known = "; ".join(f"{name}: {', '.join(sorted(form.keys))}" for name, form in FORMATS.items())
    raise RowFault(f"the columns {sorted(map(str, row))} fit no format of ranked lists ({known})")


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


def _ranked(row: Mapping[str, Any]) -> Parsed:
    """`{prompt, responses, ranks, annotator, time}`."""
    responses, ranks = row["responses"], row["ranks"]
    if not isinstance(responses, list) or not isinstance(ranks, list):
        raise RowFault("'responses' and 'ranks' are lists")
    if len(responses) != len(ranks):
        raise RowFault(f"{len(responses)} responses and {len(ranks)} ranks")
    for rank in ranks:
        if type(rank) is not int:  # a bool is an int to isinstance
            raise RowFault(f"the rank {rank!r:.40} is not a whole number")
    texts = tuple(filled_text_of(text, f"response {i}") for i, text in enumerate(responses, 1))
    prompt, turns = _prompt_of(row.get("prompt", ""))
    return Parsed(prompt, texts, tuple(ranks), turns, _note(row, "annotator"), _note(row, "time"))


def _selected(row: Mapping[str, Any]) -> Parsed:
    """`{prompt, selected, rejected}`, all texts."""
    prompt, turns = _prompt_of(row.get("prompt", ""))
    pair = tuple(filled_text_of(row[key], repr(key)) for key in ("selected", "rejected"))
    return Parsed(prompt, pair, BEST_FIRST, turns)


def _context(row: Mapping[str, Any]) -> Parsed:
    """hh_rlhf_cn: `{context: [message, …], chosen: message, rejected: message}`."""
    context = as_messages(row["context"])
    return _conversation(context, (as_message(row["chosen"]),), (as_message(row["rejected"]),))


def _explicit(row: Mapping[str, Any]) -> Parsed:
    """TRL's explicit prompt: texts, or messages."""
    prompt, chosen, rejected = (row[key] for key in ("prompt", "chosen", "rejected"))
    if isinstance(chosen, str) or isinstance(rejected, str):
        text, turns = _prompt_of(prompt)
        pair = tuple(filled_text_of(row[key], repr(key)) for key in ("chosen", "rejected"))
        return Parsed(text, pair, BEST_FIRST, turns)
    chosen, rejected = as_messages(chosen), as_messages(rejected)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    prompt = as_messages(prompt)
    if chosen[0][0] == "user" and rejected[0][0] == "user":
        return _shared_messages(chosen, rejected)
    return _conversation(prompt, chosen, rejected)


def _transcripts(row: Mapping[str, Any]) -> Parsed:
    """`{chosen, rejected}`: whole transcripts or conversations; the prompt is what they share.

    The last turn may be empty (the data of hh-rlhf has such rows): the assistant said nothing.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if not isinstance(chosen, str) and not isinstance(rejected, str):
        return _shared_messages(as_messages(chosen), as_messages(rejected))
    chosen, rejected = filled_text_of(chosen, "'chosen'"), filled_text_of(rejected, "'rejected'")
    answers = list(ANSWERER.finditer(chosen[: shared_length(chosen, rejected)]))
    cut = answers[-1].end() if answers else 0
    turns = turns_of(chosen[: answers[-1].start()]) if answers else ()
    return Parsed(chosen[:cut], (chosen[cut:], rejected[cut:]), BEST_FIRST, turns)


def _shared_messages(chosen: Messages, rejected: Messages) -> Parsed:
    """Two conversations: the prompt is how they begin alike, short of their last message."""
    shared = min(shared_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    return _conversation(chosen[:shared], chosen[shared:], rejected[shared:])


def _conversation(context: Messages, chosen: Messages, rejected: Messages) -> Parsed:
    """Messages as transcripts. The answerer's role closes the prompt where both share it."""
    role = chosen[0][0]
    if rejected[0][0] != role:
        raise RowFault(f"chosen is by {role!r} and rejected by {rejected[0][0]!r}")
    opening = f"\n\n{role}:"
    pair = tuple(transcript(side).removeprefix(opening) for side in (chosen, rejected))
    return Parsed(transcript(context) + opening, pair, BEST_FIRST, _chat_roles(context))


def _prompt_of(value: Any) -> tuple[str, Messages]:
    """Prompt and its turns, of messages or of a text, which may be a transcript up to an answer."""
    if value is None or isinstance(value, str):
        text = text_of(value or "", "'prompt'")
        answers = [found for found in ANSWERER.finditer(text) if found.end() == len(text)]
        return text, turns_of(text[: answers[0].start()]) if answers else ()
    messages = as_messages(value)
    return transcript(messages) + "\n\nassistant:", _chat_roles(messages)


def shared_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many elements `a` and `b` begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def turns_of(text: str) -> Messages:
    r"""Messages of a transcript `"\n\nHuman: …\n\nAssistant: …"`; none where it is not one."""
    start, *parts = TURN.split(text)
    if start.strip() or not parts:
        return ()
    return _chat_roles(tuple(zip(parts[::2], parts[1::2], strict=True)))


def _chat_roles(messages: Messages) -> Messages:
    return tuple((CHAT_ROLES.get(role.lower(), role.lower()), text) for role, text in messages)


def _note(row: Mapping[str, Any], key: str) -> str | None:
    return None if row.get(key) is None else text_of(row[key], repr(key))


FORMATS: dict[str, Format] = {
    "ranked": Format(frozenset({"responses", "ranks"}), _ranked),
    "selected": Format(frozenset({"selected", "rejected"}), _selected),
    "context": Format(frozenset({"context", "chosen", "rejected"}), _context),
    "explicit": Format(frozenset({"prompt", "chosen", "rejected"}), _explicit),
    "transcripts": Format(frozenset({"chosen", "rejected"}), _transcripts),
}
