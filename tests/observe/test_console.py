"""The console in a pipe and on a terminal, and the table of before and after."""

import io
import time

import pytest

from rlhf_ray.observe.console import Console
from rlhf_ray.observe.samples import Pair, Sample
from rlhf_ray.observe.tables import headlines

SUMMARY = {
    "heldout": {
        "score_before": 0.5,
        "score_after": 3.5,
        "score_std_before": 1.5,
        "gold_before": 0.4,
        "gold_after": 0.9,
        "kl": 8.0,
    },
    "samples_per_s": 31.26,
    "phase_seconds": {"sft": 30.0, "ppo": 100.0},
    "rollouts": {"committed": 640, "consumed": 640, "requeued": 0, "duplicated": 0},
    "bad_rows": 2,
}


def piped(quiet_s: float = 0.0) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console("demo", stream=out, quiet_s=quiet_s), out


def test_a_pipe_gets_whole_lines_and_no_control_characters() -> None:
    console, out = piped()
    with console.phase("ppo", 3) as line:
        for step in (1, 2, 3):
            line.update(step, {"score/mean": step / 2, "kl/mean_k1": 1.25, "tokens_per_s": 12345.6})
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert all("ppo" in text and "KL 1.25" in text and "tok/s 12,346" in text for text in lines)
    assert "1/3" in lines[0] and "score +0.50" in lines[0] and "left" in lines[0]
    assert "3/3" in lines[2] and "took" in lines[2]
    assert all(char.isprintable() or char == "\n" for char in out.getvalue())


def test_a_pipe_is_quiet_between_lines_but_shows_first_and_last() -> None:
    console, out = piped(quiet_s=3600.0)
    with console.phase("sft", 500) as line:
        for step in range(1, 501):
            line.update(step, {"loss/lm": 1.0})
    shown = [text.split()[2] for text in out.getvalue().splitlines()]
    assert shown == ["1/500", "500/500"]


def test_a_resumed_phase_says_where_it_stands() -> None:
    console, out = piped()
    with console.phase("ppo", 10, done=4) as line:
        line.update(5)
    assert "5/10" in out.getvalue() and "left" in out.getvalue()


def test_a_terminal_gets_a_live_line() -> None:
    out = io.StringIO()
    console = Console("demo", stream=out, live=True)
    with console.phase("sft", 2) as line:
        line.update(2, {"loss/lm": 1.5})
    assert "\x1b[" in out.getvalue() and "loss 1.500" in out.getvalue()


def test_a_models_text_cannot_steer_the_terminal() -> None:
    console, out = piped()
    console.note("[bold]as it is[/bold]")
    nasty = Sample(1, "a prompt", "\x1b[31mred\rover\nnext [/bold] [red]", -1.0)
    good = Sample(1, "a prompt", "好，很喜欢", 2.0)
    console.summary(SUMMARY, [Pair("a prompt", nasty, good)], report="runs/demo/report.html")
    text = out.getvalue()
    assert "[bold]as it is[/bold]" in text and "[/bold] [red]" in text
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "好，很喜欢" in text and "[+2.00]" in text and "runs/demo/report.html" in text
    assert "640 committed" in text and "31.3" in text


def test_headlines_are_the_summary_by_hand() -> None:
    rows = {row.name: row for row in headlines(SUMMARY)}
    score = rows["score"]
    assert (score.before, score.after, score.change) == ("0.50", "3.50", "+3.00 (+2.00 σ)")
    assert rows["gold score"].change == "+0.50"
    assert rows["KL efficiency"].after == "0.50"  # 2 σ over sqrt(2 · 8)


@pytest.mark.parametrize("summary", [{}, {"heldout": {}}, {"heldout": {"gold_before": None}}])
def test_a_summary_without_evaluation_has_no_headlines(summary: dict) -> None:
    assert headlines(summary) == []
    console, _ = piped()
    console.summary(summary)


def test_a_phase_of_a_day_has_a_thousand_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    console, out = piped(quiet_s=3.0)
    with console.phase("ppo", 10_000) as line:
        for step in range(10_000):
            now[0] += 8.64
            line.update(step)
    lines = out.getvalue().splitlines()
    assert 500 < len(lines) < 1500
    assert sum("ppo" in text for text in lines[:60]) == 60, "at first every step is shown"
