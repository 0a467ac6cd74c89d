"""What a run shows: a live line on a terminal, a plain line every few seconds in a pipe or log."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from rlhf_ray.observe.samples import Pair
from rlhf_ray.observe.tables import before_after_table, completions_table, facts

# Metrics that a line shows, in this order, where the phase has them: key → (label, format).
SHOWN = {
    "loss/lm": ("loss", "{:.3f}"),
    "loss/rank": ("loss", "{:.3f}"),
    "heldout/loss_lm": ("held-out", "{:.3f}"),
    "pair_accuracy": ("accuracy", "{:.3f}"),
    "heldout/pair_accuracy": ("held-out", "{:.3f}"),
    "score/mean": ("score", "{:+.2f}"),
    "heldout/score": ("held-out", "{:+.2f}"),
    "kl/mean_k1": ("KL", "{:.2f}"),
    "response/length": ("length", "{:.0f}"),
    "tokens_per_s": ("tok/s", "{:,.0f}"),
}
_WIDTH_IN_A_PIPE = 110
QUIET_UNTIL = 600.0  # seconds of a phase after which the time between two lines grows with it


class Console:
    """One a run. `quiet_s`: least seconds between two lines of a phase where output is no tty.

    They grow with the phase, so that a run of days has thousands of lines and not tens of them.
    """

    def __init__(
        self,
        run: str,
        *,
        stream: TextIO | None = None,
        quiet_s: float = 3.0,
        live: bool | None = None,
    ) -> None:
        out = stream or sys.stdout
        self.run = run
        self.quiet_s = quiet_s
        self.live = out.isatty() if live is None else live
        self.rich = RichConsole(
            file=out,
            highlight=False,
            force_terminal=self.live or None,
            no_color=None if self.live else True,
            width=None if self.live else _WIDTH_IN_A_PIPE,
            soft_wrap=not self.live,
        )
        self.started = time.monotonic()

    @contextmanager
    def phase(self, name: str, total: int, *, done: int = 0) -> Iterator["PhaseLine"]:
        """Show a phase of `total` steps, `done` of them before, while the context is open."""
        with PhaseLine(self, name, total, done) as line:
            yield line

    def note(self, text: str) -> None:
        """A line of its own, with the time since the start. Markup in it is shown, not obeyed."""
        self.rich.print(f"{_clock(time.monotonic() - self.started)}  {escape(text)}")

    def summary(
        self, summary: Mapping[str, Any], samples: Sequence[Pair] = (), *, report: str | None = None
    ) -> None:
        """The end of a run: before and after, completions side by side, where to read on."""
        self.rich.print()
        self.rich.print(before_after_table(summary), soft_wrap=False)
        for name, value in facts(summary):
            self.rich.print(f" {name:<22}{value}", markup=False)
        if samples:
            self.rich.print(completions_table(samples), soft_wrap=False)
        if report:
            self.rich.print(f"report: {escape(str(report))}")


class PhaseLine:
    """Progress of one phase. Made by `Console.phase`."""

    def __init__(self, console: Console, name: str, total: int, done: int) -> None:
        self._console = console
        self._name = name
        self._total = max(total, 1)
        self._first_step = self._step = done
        self._metrics: dict[str, float] = {}
        self._started = time.monotonic()
        self._printed = -float("inf")
        self._printed_step = done
        self._live: Live | None = None

    def __enter__(self) -> "PhaseLine":
        if self._console.live:
            self._live = Live(
                get_renderable=self._text, console=self._console.rich, refresh_per_second=4
            )
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()
        else:
            self._print(force=True)

    def update(
        self, step: int, metrics: Mapping[str, float] | None = None, *, total: int | None = None
    ) -> None:
        """`step` steps are done. Metrics stay on the line until they are replaced."""
        self._step = step
        self._total = total or self._total
        self._metrics |= metrics or {}
        if self._live is None:
            self._print(force=False)

    def _print(self, *, force: bool) -> None:
        now = time.monotonic()
        if force and self._printed_step == self._step:
            return
        quiet = self._console.quiet_s * max(1.0, (now - self._started) / QUIET_UNTIL)
        if force or now - self._printed >= quiet:
            self._printed, self._printed_step = now, self._step
            self._console.rich.print(self._text())

    def _text(self) -> Text:
        elapsed = time.monotonic() - self._started
        clock = _clock(time.monotonic() - self._console.started)
        parts = [f"{clock}  {self._name:<14} {self._step:>5}/{self._total}"]
        for key, (label, form) in SHOWN.items():
            if key in self._metrics:
                parts.append(f"{label} {form.format(self._metrics[key])}")
        done = self._step - self._first_step
        if self._step >= self._total:
            parts.append(f"took {_clock(elapsed)}")
        elif done:
            parts.append(f"left {_clock(elapsed / done * (self._total - self._step))}")
        text = Text("  ".join(parts), no_wrap=self._console.live, overflow="ellipsis")
        if self._console.live:
            text.stylize("bold", 0, text.plain.find(self._name) + len(self._name))
        return text


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:d}:{rest:02d}"
