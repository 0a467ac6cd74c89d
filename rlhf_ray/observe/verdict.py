"""The verdict on a reward model (evaluation.json) as charts of the report."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from rlhf_ray.observe.charts import Series, line_chart, stacked_bars

Chart = tuple[str, str, str, list[str]]  # title, note, svg, legend


def verdict_charts(verdict: Mapping[str, Any]) -> list[Chart]:
    """Histogram of the score gap, calibration curve, accuracy by length and by source."""
    return [_gaps(verdict), _calibration(verdict), _shares(verdict)]


def _gaps(verdict: Mapping[str, Any]) -> Chart:
    edges, counts = verdict["histogram"]["edges"], verdict["histogram"]["counts"]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    svg = stacked_bars(middles, [("pairs", counts)], x_label="score better − worse")
    return "Score gaps", "held-out pairs; right of 0 is right", svg, ["pairs"]


def _calibration(verdict: Mapping[str, Any]) -> Chart:
    points = [(one["confidence"], one["right"]) for one in verdict["calibration"]]
    ideal = Series("ideal", [(0.5, 0.5), (1.0, 1.0)])
    svg = line_chart([Series("right", points, dots=True), ideal], x_label="confidence σ(|gap|)")
    return "Calibration", "share right of the pairs of a confidence", svg, ["right", "ideal"]


def _shares(verdict: Mapping[str, Any]) -> Chart:
    """One bar each: all pairs, the better one longer, shorter; then each source."""
    lengths = verdict["lengths"]
    named = {
        "all": verdict["metrics"]["pair_accuracy"],
        "better is longer": lengths.get("accuracy_longer"),
        "better is shorter": lengths.get("accuracy_shorter"),
        "“longer is better” alone": lengths["longer_is_better"],
        **{source: one["pair_accuracy"] for source, one in verdict["sources"].items()},
    }
    shown = {name: value for name, value in named.items() if value is not None}
    layers = [
        (name.rpartition("/")[2], [value if i == k else 0.0 for i in range(len(shown))])
        for k, (name, value) in enumerate(shown.items())
    ]
    svg = stacked_bars(list(range(1, len(shown) + 1)), layers, x_label="")
    return "Pair accuracy by kind", "is it just length? one source?", svg, [n for n, _ in layers]
