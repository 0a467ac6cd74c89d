"""A reward model's verdict as charts and as pictures."""

from pathlib import Path

import pytest

from rlhf_ray.observe.curves import draw_strength, draw_training, draw_verdict
from rlhf_ray.observe.verdict import verdict_charts

VERDICT = {
    "metrics": {"pair_accuracy": 0.75},
    "histogram": {"edges": [-1.0, 0.0, 1.0, 2.0], "counts": [1.0, 2.0, 1.0]},
    "calibration": [{"confidence": 0.55, "right": 0.5, "pairs": 2.0},
                    {"confidence": 0.8, "right": 1.0, "pairs": 2.0}],
    "lengths": {"longer_is_better": 0.5, "accuracy_longer": 1.0},
    "sources": {"/data/a<b>.tsv": {"pairs": 4.0, "pair_accuracy": 0.75}},
}  # fmt: skip
ROWS = [
    {"step": 1, "loss/rank": 0.7, "pair_accuracy": 0.5},
    {"step": 2, "loss/rank": 0.6, "pair_accuracy": 0.6, "heldout/pair_accuracy": 0.7},
]
BUCKETS = [{"mean": -1.0, "std": 0.2, "agree": 0.1, "target": 0.3},
           {"mean": 2.0, "std": 0.5, "agree": 1.0, "target": 0.9}]  # fmt: skip


def test_the_charts_show_what_there_is() -> None:
    gaps, calibration, shares = verdict_charts(VERDICT)
    assert gaps[2].count("<rect") == 3 and calibration[2].count("<polyline") == 2
    assert shares[3] == ["all", "better is longer", "“longer is better” alone", "a<b>.tsv"]
    assert "a<b>" not in shares[2] and "a&lt;b&gt;" in shares[2]


@pytest.mark.parametrize(
    ("draw", "content"),
    [(draw_training, ROWS), (draw_verdict, VERDICT), (draw_strength, BUCKETS)],
)
def test_pictures_are_drawn(draw, content, tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png", content)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
