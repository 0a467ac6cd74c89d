"""Rows of ranked lists: good ones of each format, and ones broken in a way that is known."""

import json
import random
from collections.abc import Callable
from typing import Any

WORDS = ["good", "bad", "水壶", "不错", "it broke", "so-so", 'a "quoted" word', "back\\slash", "é"]

Row = dict[str, Any]


def text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 6))) + f" {rng.randrange(10**9)}"


def message(rng: random.Random, role: str) -> Row:
    who, what = rng.choice([("role", "content"), ("role", "text"), ("from", "value")])
    return {who: role, what: text(rng)}


def ranked(rng: random.Random) -> Row:
    k = rng.randint(2, 5)
    ranks = [1, 2, *rng.choices(range(1, 5), k=k - 2)]
    row: Row = {"prompt": text(rng), "responses": [text(rng) for _ in ranks], "ranks": ranks}
    return row | ({"annotator": "a1", "time": "2024-05-01"} if rng.random() < 0.5 else {})


def selected(rng: random.Random) -> Row:
    return {"prompt": text(rng), "selected": text(rng), "rejected": text(rng)}


def context(rng: random.Random) -> Row:
    turns = [message(rng, role) for role in ("Human", "Assistant", "Human")]
    chosen, rejected = message(rng, "Assistant"), message(rng, "Assistant")
    return {"context": turns[-rng.choice([1, 3]) :], "chosen": chosen, "rejected": rejected}


def explicit(rng: random.Random) -> Row:
    if rng.random() < 0.5:
        return {"prompt": text(rng), "chosen": text(rng), "rejected": text(rng)}
    chosen, rejected = [message(rng, "assistant")], [message(rng, "assistant")]
    return {"prompt": [message(rng, "user")], "chosen": chosen, "rejected": rejected}


def transcripts(rng: random.Random) -> Row:
    if rng.random() < 0.5:
        shared = f"\n\nHuman: {text(rng)}\n\nAssistant:"
        return {"chosen": f"{shared} {text(rng)}", "rejected": f"{shared} {text(rng)}"}
    shared_turns = [message(rng, "user")]
    answers = [message(rng, "assistant"), message(rng, "assistant")]
    return {"chosen": [*shared_turns, answers[0]], "rejected": [*shared_turns, answers[1]]}


GOOD: dict[str, Callable[[random.Random], Row]] = {
    "ranked": ranked,
    "selected": selected,
    "context": context,
    "explicit": explicit,
    "transcripts": transcripts,
}
# Without these no format is left that the row could be.
NEEDED = {
    "ranked": ("responses", "ranks"),
    "selected": ("selected", "rejected"),
    "context": ("chosen", "rejected"),
    "explicit": ("chosen", "rejected"),
    "transcripts": ("chosen", "rejected"),
}
WRONG_TYPES: tuple[Any, ...] = (None, 3, 2.5, True, [], {}, [7], [None], {"role": "user"}, [["a"]])


def good_line(rng: random.Random, form: str) -> bytes:
    if form == "tsv":
        return "\t".join(text(rng) for _ in range(rng.randint(2, 5))).encode()
    return json.dumps(GOOD[form](rng), ensure_ascii=rng.random() < 0.5).encode()


def bad_line(rng: random.Random, form: str) -> bytes:
    """A line that no reader may accept."""
    if form == "tsv":
        return rng.choice(TSV_FAULTS)(rng)
    faults = [*JSON_FAULTS, _without, _wrong_type, _same]
    faults += RANK_FAULTS if form == "ranked" else [_blank_text]
    return rng.choice(faults)(rng, GOOD[form](rng), form)


def _one_cell(rng: random.Random) -> bytes:
    return text(rng).encode()


def _blank_cell(rng: random.Random) -> bytes:
    cells = [text(rng) for _ in range(rng.randint(2, 5))]
    cells[rng.randrange(len(cells))] = rng.choice(["", " ", "\u3000", r"\n", r"\t"])
    return "\t".join(cells).encode()


def _tabs_alone(rng: random.Random) -> bytes:
    return b"\t" * rng.randint(1, 4)


def _same_cells(rng: random.Random) -> bytes:
    return "\t".join([text(rng)] * rng.randint(2, 4)).encode()


def _no_utf8(rng: random.Random) -> bytes:
    line = good_line(rng, "tsv")
    place = rng.randrange(len(line))
    return line[:place] + rng.choice([b"\xff", b"\xc3\x28", b"\xed\xa0\x80"]) + line[place:]


TSV_FAULTS = (_one_cell, _blank_cell, _tabs_alone, _same_cells, _no_utf8)


def _truncated(rng: random.Random, row: Row, form: str) -> bytes:
    line = json.dumps(row)
    return line[: rng.randrange(1, len(line))].encode()


def _trailing(rng: random.Random, row: Row, form: str) -> bytes:
    return json.dumps(row).encode() + rng.choice([b"}", b",", b" {}", b"x"])


def _not_an_object(rng: random.Random, row: Row, form: str) -> bytes:
    return rng.choice(
        [json.dumps([row]), json.dumps(json.dumps(row)), "3", "null", "true"]
    ).encode()


def _twice(rng: random.Random, row: Row, form: str) -> bytes:
    key = json.dumps(rng.choice(sorted(row)))
    return f"{json.dumps(row)[:-1]}, {key}: 1}}".encode()


def _bytes(rng: random.Random, row: Row, form: str) -> bytes:
    line = json.dumps(row).encode()
    place = rng.randrange(len(line))
    return line[:place] + b"\xff" + line[place:]


def _half_a_surrogate(rng: random.Random, row: Row, form: str) -> bytes:
    key = "responses" if form == "ranked" else rng.choice(NEEDED[form])
    value = row[key]
    target = value[-1] if isinstance(value, list) else value
    if isinstance(target, dict):
        target[next(k for k in ("content", "text", "value") if k in target)] += "\ud800"
    elif isinstance(value, list):
        value[-1] += "\ud800"
    else:
        row[key] += "\ud800"
    return json.dumps(row).encode()


def _not_a_number(rng: random.Random, row: Row, form: str) -> bytes:
    return json.dumps(row | {"x": rng.choice([float("nan"), float("inf")])}).encode()


JSON_FAULTS = (
    _truncated, _trailing, _not_an_object, _twice, _bytes, _half_a_surrogate, _not_a_number,
)  # fmt: skip


def _without(rng: random.Random, row: Row, form: str) -> bytes:
    del row[rng.choice(NEEDED[form])]
    return json.dumps(row).encode()


def _wrong_type(rng: random.Random, row: Row, form: str) -> bytes:
    row[rng.choice(NEEDED[form])] = rng.choice(WRONG_TYPES)
    return json.dumps(row).encode()


def _same(rng: random.Random, row: Row, form: str) -> bytes:
    """Nothing to learn: every response is the same, or of the same rank."""
    if form != "ranked":
        row["rejected"] = row["selected" if form == "selected" else "chosen"]
    elif rng.random() < 0.5:
        row["ranks"] = [rng.randrange(9)] * len(row["ranks"])
    else:
        row["responses"] = [text(rng)] * len(row["ranks"])
    return json.dumps(row).encode()


def _blank_text(rng: random.Random, row: Row, form: str) -> bytes:
    row[rng.choice(NEEDED[form])] = rng.choice(["", "  ", "\n"])
    return json.dumps(row).encode()


def _ranks(rng: random.Random, row: Row, form: str) -> bytes:
    odd = rng.choice([1.5, 2.0, "1", None, True, [1]])
    row["ranks"][rng.randrange(len(row["ranks"]))] = odd
    return json.dumps(row).encode()


def _lengths(rng: random.Random, row: Row, form: str) -> bytes:
    row[rng.choice(["ranks", "responses"])].pop()
    return json.dumps(row).encode()


def _single(rng: random.Random, row: Row, form: str) -> bytes:
    return json.dumps(row | {"responses": row["responses"][:1], "ranks": [1]}).encode()


def _blank_response(rng: random.Random, row: Row, form: str) -> bytes:
    row["responses"][rng.randrange(len(row["responses"]))] = rng.choice(["", " ", 3, None])
    return json.dumps(row).encode()


def _pairs(rng: random.Random, row: Row, form: str) -> bytes:
    last = len(row["ranks"]) - 1
    good = {"better": 0, "worse": last}
    bad = rng.choice(
        [
            good | {"worse": last + 1}, good | {"better": -1}, good | {"worse": 0},
            good | {"better": "0"}, good | {"worse": True}, good | {"target": 1.5},
            good | {"margin": "1"}, {"better": 0}, [0, 1], None,
        ]
    )  # fmt: skip
    return json.dumps(row | {"pairs": rng.choice([[good, bad], [bad], [], {}])}).encode()


RANK_FAULTS = [_pairs, _ranks, _lengths, _single, _blank_response]
