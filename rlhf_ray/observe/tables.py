"""The numbers of summary.json as rows: shared by the console and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from rlhf_ray.observe.samples import Pair

_PAIRS = (
    ("length", "length (tokens)", "{:.1f}"),
    ("distinct2", "distinct bigrams", "{:.2f}"),
)


@dataclass(frozen=True, slots=True)
class Headline:
    """One row of the table before and after; a value that does not apply is empty."""

    name: str
    before: str
    after: str
    change: str


def headlines(summary: Mapping[str, Any]) -> list[Headline]:
    """Rows for what `summary["heldout"]` holds; [] without it.

    The score's change is also given in its own standard deviation before, Δ/σ; KL efficiency is
    that over sqrt(2·KL), which no policy can exceed by much (1 is the ideal).
    """
    heldout: Mapping[str, float | None] = summary.get("heldout") or {}
    rows = []
    before, after = heldout.get("score_before"), heldout.get("score_after")
    std, kl = heldout.get("score_std_before"), heldout.get("kl")
    if before is not None and after is not None:
        in_std = f" ({(after - before) / std:+.2f} σ)" if std else ""
        rows.append(_row("score", before, after, "{:.2f}", in_std))
    gold_before, gold_after = heldout.get("gold_before"), heldout.get("gold_after")
    if gold_before is not None and gold_after is not None:
        rows.append(_row("gold score", gold_before, gold_after, "{:.2f}"))
    if kl is not None:
        rows.append(Headline("KL (nats a response)", "", f"{kl:.2f}", ""))
    if before is not None and after is not None and std and kl is not None and kl > 0:
        efficiency = (after - before) / std / sqrt(2 * kl)
        rows.append(Headline("KL efficiency", "", f"{efficiency:.2f}", ""))
    for key, name, form in _PAIRS:
        first, last = heldout.get(f"{key}_before"), heldout.get(f"{key}_after")
        if first is not None and last is not None:
            rows.append(_row(name, first, last, form))
    return rows


def facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what is not before and after: speed, seconds, rollouts, bad rows."""
    rows = []
    if summary.get("samples_per_s") is not None:
        rows.append(("samples per second", f"{summary['samples_per_s']:.1f}"))
    seconds = summary.get("phase_seconds") or {}
    if seconds:
        parts = ", ".join(f"{name} {s:.0f}" for name, s in seconds.items() if round(s))
        total = summary.get("total_seconds") or sum(seconds.values())
        rows.append(("seconds", f"{total:.0f} ({parts})"))
    rollouts = summary.get("rollouts") or {}
    if rollouts:
        rows.append(("rollouts", ", ".join(f"{n:,} {name}" for name, n in rollouts.items())))
    if summary.get("peak_pss_mb") is not None:
        rows.append(("peak memory", f"{summary['peak_pss_mb'] / 1000:.1f} GB"))
    bad_rows = summary.get("bad_rows")
    if bad_rows:
        count = sum(bad_rows.values()) if isinstance(bad_rows, Mapping) else bad_rows
        rows.append(("bad rows skipped", str(count)))
    return rows


def before_after_table(summary: Mapping[str, Any]) -> Table:
    """The headlines for the console."""
    table = Table(box=box.SIMPLE, title="held-out prompts", title_justify="left", pad_edge=False)
    for name in ("", "before", "after", "change"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for row in headlines(summary):
        table.add_row(row.name, row.before, row.after, row.change)
    return table


def completions_table(samples: Sequence[Pair]) -> Table:
    """Prompt, response before, response after, with scores."""
    table = Table(box=box.SIMPLE, show_lines=True, pad_edge=False, expand=True)
    for name, ratio in (("prompt", 2), ("before", 3), ("after", 3)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for pair in samples:
        before, after = (
            Text(f"{printable(sample.response)}  [{sample.score:+.2f}]")
            for sample in (pair.before, pair.after)
        )
        table.add_row(Text(printable(pair.prompt)), before, after)
    return table


def printable(text: str) -> str:
    """A model's text with what could steer a terminal shown as a space; line breaks too."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _row(name: str, before: float, after: float, form: str, suffix: str = "") -> Headline:
    change = f"{after - before:+.2f}{suffix}"
    return Headline(name, form.format(before), form.format(after), change)
