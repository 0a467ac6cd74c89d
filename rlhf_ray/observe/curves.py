"""Pictures (PNG) of reward models: how training went, what the verdict is, how sure labels are.

matplotlib is imported where a picture is drawn: a run that draws none does not load it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.files import replacing

TRAINING_FILE, VERDICT_FILE, STRENGTH_FILE = "training.png", "evaluation.png", "strength.png"
_INK, _SECOND = "#2563c9", "#d9711c"


def draw_training(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Loss and pair accuracy over the steps, held-out accuracy at the end of each epoch."""
    figure, (left, right) = _figure(2)
    steps = [row["step"] for row in rows]
    left.plot(steps, [row["loss/rank"] for row in rows], color=_INK)
    left.set(title="ranking loss (window of steps)", xlabel="step")
    right.plot(steps, [row["pair_accuracy"] for row in rows], color=_INK, label="training")
    held = [row for row in rows if row.get("heldout/pair_accuracy") is not None]
    if held:
        places = [row["step"] for row in held]
        values = [row["heldout/pair_accuracy"] for row in held]
        right.plot(places, values, "o-", color=_SECOND, label="held-out")
    right.set(title="pair accuracy", xlabel="step")
    right.legend(frameon=False)
    return _save(figure, path)


def draw_verdict(path: Path, verdict: Mapping[str, Any]) -> Path:
    """The histogram of score gaps and the calibration curve of an evaluation.json."""
    figure, (left, right) = _figure(2)
    edges, counts = verdict["histogram"]["edges"], verdict["histogram"]["counts"]
    left.bar(edges[:-1], counts, width=edges[1] - edges[0], align="edge", color=_INK)
    left.axvline(0, color="#657083", linewidth=1)
    accuracy = verdict["metrics"]["pair_accuracy"]
    left.set(title=f"score gap better − worse ({accuracy:.3f} right)", ylabel="pairs")
    right.plot([0.5, 1], [0.5, 1], color="#aab3bf", linewidth=1)
    bins = verdict["calibration"]
    size = max(one["pairs"] for one in bins)
    right.scatter(
        [one["confidence"] for one in bins],
        [one["right"] for one in bins],
        s=[20 + 180 * one["pairs"] / size for one in bins],
        color=_INK,
    )
    right.set(title="calibration", xlabel="confidence σ(|gap|)", ylabel="share right")
    return _save(figure, path)


def draw_strength(path: Path, buckets: Sequence[Mapping[str, float]]) -> Path:
    """Mean gap of each bucket with its deviation, and the share of models that agree."""
    figure, (left, right) = _figure(2)
    places = range(1, len(buckets) + 1)
    means, stds = ([one[key] for one in buckets] for key in ("mean", "std"))
    left.errorbar(places, means, yerr=stds, fmt="o-", color=_INK, capsize=3)
    left.axhline(0, color="#aab3bf", linewidth=1)
    left.set(title="preference strength: mean gap ± deviation", xlabel="bucket, weakest first")
    right.plot(places, [one["agree"] for one in buckets], "o-", color=_INK, label="models agree")
    right.plot(places, [one["target"] for one in buckets], "s--", color=_SECOND, label="σ(gap)")
    right.set(title="how sure the label is", xlabel="bucket, weakest first", ylim=(0, 1.02))
    right.legend(frameon=False)
    return _save(figure, path)


def _figure(panels: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, panels, figsize=(5.2 * panels, 3.6), layout="constrained")


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    with replacing(path) as aside:
        figure.savefig(aside, dpi=120, format="png")
    pyplot.close(figure)
    return path
