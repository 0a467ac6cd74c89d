"""report.html: one file without the net, from what a run's directory holds.

    python -m rlhf_ray.observe.report runs/demo

A part that the directory has nothing for is left out, so it serves SFT or a reward model alone too.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from rlhf_ray.files import write_text
from rlhf_ray.observe.charts import Series, line_chart, stacked_bars
from rlhf_ray.observe.keys import TIMES
from rlhf_ray.observe.metrics import Phase, read_metrics
from rlhf_ray.observe.samples import before_after
from rlhf_ray.observe.tables import facts, headlines
from rlhf_ray.observe.verdict import verdict_charts

_MOST_SAMPLES = 12


@dataclass(frozen=True, slots=True)
class Plot:
    """What one chart shows: key → label. `spread` is the key of the first line's ± band.

    With `only_changing` it is left out when no value ever changes: one generator, staleness 0.
    """

    title: str
    note: str
    lines: Mapping[str, str]
    spread: str | None = None
    dots: frozenset[str] = frozenset()
    only_changing: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawn chart, with its legend in the order of the classes c0, c1, …"""

    title: str
    note: str
    svg: str
    legend: Sequence[str]


_HELDOUT_SCORE, _HELDOUT_KL, _HELDOUT_LENGTH = "heldout/score", "heldout/kl", "heldout/length"
_NEW_POLICY = (
    Plot(
        "Score",
        "batch mean ± its deviation",
        {"score/mean": "training", _HELDOUT_SCORE: "held-out"},
        spread="score/std",
        dots=frozenset({_HELDOUT_SCORE}),
    ),
    Plot("Gold score", "the truth, on held-out prompts", {"heldout/gold": "held-out"}),
    Plot(
        "KL to the reference",
        "nats a response",
        {"kl/mean_k1": "training", _HELDOUT_KL: "held-out"},
        dots=frozenset({_HELDOUT_KL}),
    ),
    Plot("KL efficiency", "Δ score in σ, over sqrt(2·KL)", {"kl/efficiency": "policy"}),
    Plot(
        "Response length",
        "tokens",
        {"response/length": "training", _HELDOUT_LENGTH: "held-out"},
        dots=frozenset({_HELDOUT_LENGTH}),
    ),
    Plot("Entropy", "nats a token", {"entropy/mean": "policy"}),
    Plot("Variety", "distinct bigrams, held-out", {"heldout/distinct2": "held-out"}),
)
_UPDATE = (
    Plot("Policy loss", "mean a token", {"loss/policy": "policy"}),
    Plot("Value loss", "score², mean a token", {"loss/value": "value"}),
    Plot("Explained variance", "of the returns", {"value/explained_variance": "values"}),
    Plot("Clipped tokens", "fraction", {"policy/clip_fraction": "clipped"}),
    Plot("KL of one update", "k3, nats a token", {"policy/approx_kl": "policy"}),
    Plot(
        "Gradient norm",
        "before clipping",
        {"grad/norm": "policy", "grad/norm_critic": "critic"},
    ),
)
_POOLS = (
    Plot(
        "Staleness",
        "versions",
        {"staleness/mean": "mean", "staleness/max": "largest"},
        only_changing=True,
    ),
    Plot("Generators", "serving", {"generators/serving": "serving"}, only_changing=True),
)
_REWARD_MODEL = (
    Plot("Ranking loss", "nats a pair", {"loss/rank": "loss"}),
    Plot(
        "Pair accuracy",
        "fraction",
        {"pair_accuracy": "training", "heldout/pair_accuracy": "held-out"},
        dots=frozenset({"heldout/pair_accuracy"}),
    ),
    Plot(
        "Score gap of a pair",
        "held-out, mean ± deviation",
        {"heldout/gap_mean": "gap"},
        spread="heldout/gap_std",
        dots=frozenset({"heldout/gap_mean"}),
    ),
)
_SFT = (
    Plot(
        "Language model loss",
        "nats a token",
        {"loss/lm": "training", "heldout/loss_lm": "held-out"},
        dots=frozenset({"heldout/loss_lm"}),
    ),
)

SECTIONS: Sequence[tuple[str, Phase, Sequence[Plot]]] = (
    ("PPO: the policy", "ppo", _NEW_POLICY),
    ("PPO: the update", "ppo", _UPDATE),
    ("PPO: the machines", "ppo", _POOLS),
    ("Reward model", "rm", _REWARD_MODEL),
    ("SFT", "sft", _SFT),
)


def write_report(run_dir: Path) -> Path:
    """Render `report.html` into a run's directory, and return its path.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: a damaged metrics.jsonl; the line is named.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"no run directory at {run_dir}")
    rows = list(read_metrics(run_dir))
    summary = _json(run_dir / "summary.json")
    loader = jinja2.PackageLoader("rlhf_ray.observe", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    page = environment.get_template("report.html.jinja").render(
        run=run_dir.name,
        headlines=headlines(summary),
        facts=facts(summary),
        sections=_sections(rows, _json(run_dir / "reward" / "evaluation.json")),
        pairs=before_after(run_dir)[:_MOST_SAMPLES],
        provenance=_json(run_dir / "provenance.json"),
        config=_text(run_dir / "config.yaml"),
        last=_last_values(rows),
    )
    path = run_dir / "report.html"
    write_text(path, page)
    return path


def _sections(
    rows: Sequence[Mapping[str, Any]], verdict: Mapping[str, Any]
) -> list[tuple[str, list[Figure]]]:
    sections = []
    for title, phase, plots in SECTIONS:
        of_phase = [row for row in rows if row["phase"] == phase]
        figures = [figure for plot in plots if (figure := _figure(plot, of_phase))]
        if plots is _NEW_POLICY:
            figures[1:1] = _components(of_phase)
        if plots is _POOLS:
            figures[:0] = _seconds(of_phase)
        if plots is _REWARD_MODEL and verdict:
            figures += [Figure(*chart) for chart in verdict_charts(verdict)]
        if figures:
            sections.append((title, figures))
    return sections


def _figure(plot: Plot, rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    series: list[Series] = []
    for key, label in plot.lines.items():
        held = [row for row in rows if row.get(key) is not None]
        if not held:
            continue
        points = [(row["step"], row[key]) for row in held]
        spread: list[float] = []
        if plot.spread and not series:
            spread = [row.get(plot.spread) or 0.0 for row in held]
        series.append(Series(label, points, spread, dots=key in plot.dots))
    if not series:
        return None
    if plot.only_changing and all(len({y for _, y in one.points}) == 1 for one in series):
        return None
    return Figure(plot.title, plot.note, line_chart(series), [one.label for one in series])


def _components(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """The score's components, where there are several."""
    names = dict.fromkeys(
        key for row in rows for key in row if key.startswith("score/") and key not in _NO_COMPONENT
    )
    if len(names) < 2:
        return []
    lines = {name: name.removeprefix("score/") for name in names}
    figure = _figure(Plot("Score by component", "mean of a batch, unweighted", lines), rows)
    return [figure] if figure else []


_NO_COMPONENT = ("score/mean", "score/std")


def _seconds(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Seconds of each iteration by what it was doing."""
    held = [row for row in rows if any(row.get(f"time/{name}") for name in TIMES)]
    if not held:
        return []
    layers = [(name, [row.get(f"time/{name}") or 0.0 for row in held]) for name in TIMES]
    layers = [(name, values) for name, values in layers if any(values)]
    svg = stacked_bars([row["step"] for row in held], layers)
    return [Figure("Time by phase", "seconds of an iteration", svg, [name for name, _ in layers])]


def _last_values(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """Phase, key and value of every metric as last written."""
    last: dict[tuple[str, str], float] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("phase", "step", "time") and value is not None:
                last[row["phase"], key] = value
    return [(phase, key, value) for (phase, key), value in sorted(last.items())]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(write_report(Path(name)))
