"""Ranked lists for the reward model: read from any usual form, mixed, and written."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_ray.data.chat import ChatTemplate, render, uses_template
from rlhf_ray.data.escapes import escape
from rlhf_ray.data.faults import ON_BAD_ROW, BadRows, OnBadRow, RowFault
from rlhf_ray.data.ids import stable_hash
from rlhf_ray.data.preference_formats import PROMPT, Parsed, parse_cells, parse_row
from rlhf_ray.data.preference_split import leaks, split_lists
from rlhf_ray.data.ranked_list import PreferenceSet, RankedList, has_pair
from rlhf_ray.data.rows import SUFFIXES, Row, on_disk, read_rows
from rlhf_ray.files import replacing

__all__ = [
    "PreferenceSet",
    "RankedList",
    "absolute_parts",
    "leaks",
    "load_lists",
    "split_lists",
    "write_jsonl",
    "write_tsv",
]


def load_lists(
    path: str | Path,
    *,
    on_bad_row: OnBadRow = "fail",
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat_template: ChatTemplate = "auto",
    seed: int = 0,
    prompt_column: str = PROMPT,
    flag: str = ON_BAD_ROW,
) -> PreferenceSet:
    """Ranked lists of `path`: a file, a data set, or a mixture `a.tsv=2,b.jsonl=0.5`.

    A weight is how often each list of that part is taken: 2 is twice, 0.5 every second one (which,
    is decided by `seed`). With a tokenizer that has a chat template, prompts are rendered with it.
    prompt_column: where they are; in `prompt` where a row has no such column. flag: of on_bad_row.
    Raises ValueError for a bad row (unless skipped) and where a part holds no list.
    """
    bad = BadRows(on_bad_row, flag)
    parse = partial(_parsed, prompt_column, tokenizer, chat_template)
    lists: list[RankedList] = []
    for name, weight in _parts(path):
        here = BadRows(on_bad_row, flag)
        found = list(_lists_of(name, here, parse))
        if not found:
            raise here.none_left(name, "ranked list")
        bad.include(here)
        lists += [one for one in found for _ in range(_copies(one, weight, seed))]
    if not lists:
        raise ValueError(f"{path}: the weights leave no list: raise one of them")
    return PreferenceSet(tuple(lists), bad.count, bad.first)


def write_tsv(path: str | Path, lists: Iterable[RankedList]) -> None:
    """One list a line, best first. ValueError for what it cannot hold: a prompt, a tie, `pairs`."""
    lines = []
    for one in lists:
        if one.prompt or one.pairs or len(set(one.ranks)) < len(one.ranks):
            raise ValueError(
                f"{one.source}:{one.line} has a prompt, a tie or pairs, which .tsv cannot hold: "
                f"use .jsonl"
            )
        best_first = sorted(zip(one.ranks, one.responses, strict=True))
        lines.append("\t".join(escape(text) for _, text in best_first))
    _write(path, lines)


def write_jsonl(
    path: str | Path,
    lists: Iterable[RankedList],
    *,
    columns: Iterable[Mapping[str, Any]] | None = None,
) -> None:
    """One list a line as `{prompt, responses, ranks}`, with pairs, annotator and time if any.

    columns: what else to write, for each list.
    """
    lines = []
    lists = list(lists)
    for one, more in zip(lists, columns or [{}] * len(lists), strict=True):
        row: dict[str, Any] = {"prompt": one.prompt, "responses": one.responses, "ranks": one.ranks}
        if one.pairs:
            row["pairs"] = [asdict(pair) for pair in one.pairs]
        notes = {"annotator": one.annotator, "time": one.time}
        row |= {key: value for key, value in notes.items() if value is not None} | dict(more)
        lines.append(json.dumps(row, ensure_ascii=False))
    _write(path, lines)


def absolute_parts(path: str) -> str:
    """A path or mixture with its files and directories (also DIR:SPLIT) from the root.

    Names of data sets stay as they are. Raises ValueError for a file that is not there.
    """
    parts = _parts(path)
    named = []
    for name, weight in parts:
        if (found := on_disk(name)) is not None:
            place, split = found
            name = f"{place.absolute()}{split}"
        elif Path(name).suffix.lower() in SUFFIXES or name.startswith((".", "/", "~")):
            raise ValueError(f"{name}: there is no such file or directory")
        named.append((name, weight))
    if len(named) == 1 and named[0][1] == 1:
        return named[0][0]
    return ",".join(f"{name}={weight:g}" for name, weight in named)


def _write(path: str | Path, lines: list[str]) -> None:
    content = "".join(f"{line}\n" for line in lines)
    # A reader drops one byte-order mark; a text that begins with that character keeps its own.
    mark = "\ufeff" if content.startswith("\ufeff") else ""
    with replacing(path) as aside:
        aside.write_bytes((mark + content).encode("utf-8"))


def _lists_of(name: str, bad: BadRows, parse: Callable[[Row], Parsed]) -> Iterator[RankedList]:
    for row in read_rows(name, bad):
        try:
            parsed = parse(row)
            if not has_pair(parsed.responses, parsed.ranks):
                raise RowFault("no two different responses have different ranks")
        except RowFault as fault:
            bad.add(row.source, row.line, str(fault))
        else:
            yield _list(parsed, row)


def _parsed(
    prompt_column: str,
    tokenizer: PreTrainedTokenizerBase | None,
    chat_template: ChatTemplate,
    row: Row,
) -> Parsed:
    if isinstance(row.value, str):
        parsed = parse_cells(row.value)
    else:
        parsed = parse_row(row.value, prompt_column=prompt_column)
    return parsed if tokenizer is None else _rendered(parsed, tokenizer, chat_template)


def _list(parsed: Parsed, row: Row) -> RankedList:
    return RankedList(
        prompt=parsed.prompt,
        responses=parsed.responses,
        ranks=parsed.ranks,
        source=row.source,
        line=row.line,
        annotator=parsed.annotator,
        time=parsed.time,
        group=parsed.group,
        pairs=parsed.pairs,
    )


def _rendered(
    parsed: Parsed, tokenizer: PreTrainedTokenizerBase, chat_template: ChatTemplate
) -> Parsed:
    """`parsed` with its prompt as the tokenizer's chat template puts it, where one is in use."""
    if not uses_template(tokenizer, chat_template) or not (parsed.turns or parsed.prompt):
        return parsed
    if not parsed.turns:
        rendered = render(parsed.prompt, tokenizer, chat_template)
        return replace(parsed, prompt=rendered, turns=(("user", parsed.prompt),))
    return replace(
        parsed,
        prompt=render(parsed.turns, tokenizer, chat_template),
        responses=tuple(text.removeprefix(" ") for text in parsed.responses),
    )


def _parts(path: str | Path) -> list[tuple[str, float]]:
    """Names and weights of `a.tsv=2,b.jsonl`; a path that exists is taken as it is.

    A name may hold `=`: the weight stands after the last one.
    """
    text = str(path)
    if _is_one(text) or not any(mark in text for mark in "=,"):
        return [(text, 1.0)]
    parts = []
    for part in text.split(","):
        part = part.strip()
        weighted = "=" in part and not _is_one(part)
        name, number = part.rsplit("=", 1) if weighted else (part, "1")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or not 0 < weight < math.inf:
            raise ValueError(
                f"{part!r} of the mixture {text!r} is not FILE or FILE=WEIGHT with a weight above 0"
            )
        parts.append((name, weight))
    return parts


def _is_one(text: str) -> bool:
    """Whether all of it is one path that exists, or its split."""
    found = on_disk(text)
    return found is not None and not any(mark in found[1] for mark in "=,")


def _copies(one: RankedList, weight: float, seed: int) -> int:
    whole = int(weight)
    return whole + (stable_hash(seed, "mix", one.source, one.line) < (weight - whole) * 2.0**63)
