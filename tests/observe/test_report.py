"""report.html: complete without the net, safe with any text, sensible with any part missing."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rlhf_ray.observe.charts import Series, line_chart, number, stacked_bars, ticks
from rlhf_ray.observe.metrics import RunLog
from rlhf_ray.observe.report import SECTIONS, write_report
from rlhf_ray.observe.samples import Sample, write_sample_file

EVIL = "<script>alert('x')</script> & \"quoted\" 很好"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Balance(HTMLParser):
    """Collects text, and every start tag's attributes; fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(run_dir: Path) -> Balance:
    page = Balance()
    page.feed(write_report(run_dir).read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


@pytest.fixture
def full_run(tmp_path: Path) -> Path:
    run = tmp_path / "<b>run</b>"
    with RunLog(run) as log:
        for step in range(1, 600):
            log.write("sft", step, {"loss/lm": 5.0 / step})
        log.write("rm", 1, {"loss/rank": 0.6, "heldout/gap_mean": 1.0, "heldout/gap_std": 0.5})
        log.write("ppo", 0, {"heldout/score": 0.0})
        for step in range(1, 11):
            row = {"score/mean": step / 5, "score/std": 1.0, "score/a<b": 0.1, "score/c": 0.2}
            row |= {"kl/mean_k1": float(step), "loss/policy": float("nan")}
            row |= {"time/generate": 2.0, "time/update": 3.0, "time/publish": 0.0}
            log.write("ppo", step, row)
    for step in (0, 10):
        write_sample_file(run, step, [Sample(1, EVIL, EVIL, 0.5, gold=0.5)], split="heldout")
    heldout = {"score_before": 0.0, "score_after": 2.0, "score_std_before": 1.0, "kl": 8.0}
    (run / "summary.json").write_text(json.dumps({"heldout": heldout, "samples_per_s": 3.0}))
    (run / "provenance.json").write_text(json.dumps({"command": [EVIL]}))
    (run / "config.yaml").write_text(f"run: {EVIL}\n")
    return run


def test_the_page_holds_the_run(full_run: Path) -> None:
    text = " ".join(parsed(full_run).text)
    for wanted in ("KL efficiency", "0.50", "+2.00 (+2.00 σ)", "很好", "Time by phase", "a<b"):
        assert wanted in text
    for title in ("PPO: the policy", "PPO: the machines", "Reward model", "SFT"):
        assert title in text
    assert "PPO: the update" not in text  # its only metric was never finite


def test_the_page_needs_no_net_and_runs_nothing(full_run: Path) -> None:
    page = parsed(full_run)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"src", "href"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    source = (full_run / "report.html").read_text(encoding="utf-8")
    assert "url(" not in source and "@import" not in source
    assert "".join(page.text).count("<script>alert('x')</script>") >= 4


@pytest.mark.parametrize("phase", ["sft", "rm"])
def test_one_phase_alone_makes_a_page(tmp_path: Path, phase: str) -> None:
    key = {"sft": "loss/lm", "rm": "loss/rank"}[phase]
    with RunLog(tmp_path) as log:
        log.write(phase, 1, {key: 1.0})  # type: ignore[arg-type]
    titles = [title for title, of, _ in SECTIONS if of == phase]
    text = " ".join(parsed(tmp_path).text)
    assert titles[0] in text and "PPO" not in text and "before and after" not in text


def test_an_empty_run_says_so_and_a_missing_one_raises(tmp_path: Path) -> None:
    assert "nothing yet" in " ".join(parsed(tmp_path).text)
    with pytest.raises(FileNotFoundError, match="no run directory"):
        write_report(tmp_path / "absent")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (0.0, 4.0, [0.0, 1.0, 2.0, 3.0, 4.0]),
        (-0.3, 7.1, [-2.0, 0.0, 2.0, 4.0, 6.0, 8.0]),
        (120.0, 180.0, [120.0, 140.0, 160.0, 180.0]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-7, 1e9])
def test_ticks_of_one_value_enclose_it(value: float) -> None:
    found = ticks(value, value)
    assert len(found) >= 2 and found[0] <= value <= found[-1] and found[0] < found[-1]


def test_numbers_are_short() -> None:
    assert [number(x) for x in (0, 0.02, 3.14159, 999, 5000, 12000, 2.5e6, -3e-5)] == [
        "0", "0.02", "3.14", "999", "5000", "12k", "2.5M", "-3e-05",
    ]  # fmt: skip


def coordinates(svg: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    points = [
        tuple(map(float, point.split(",")))
        for element in root.iter("polyline")
        for point in element.attrib["points"].split()
    ]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    return points  # type: ignore[return-value]


def test_a_line_is_drawn_where_its_numbers_say() -> None:
    (x0, y0), (x1, y1), (x2, y2) = coordinates(
        line_chart([Series("a", [(0, 0.0), (5, 2.0), (10, 4.0)], spread=[0.0, 0.0, 0.0])])
    )
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y1 > y2


def test_ticks_that_differ_have_labels_that_differ() -> None:
    svg = line_chart([Series("a", [(0, 6.9601), (1, 6.9788)])])
    labels = re.findall(r'class="end">([^<]+)<', svg)
    assert len(labels) >= 3 and len(set(labels)) == len(labels)


def test_many_points_are_thinned_to_means_of_stretches() -> None:
    svg = line_chart([Series("a", [(i, float(i)) for i in range(320)])])
    assert len(coordinates(svg)) == 160
    assert re.findall(r"<title>(.*?)</title>", svg)[:2] == ["a at 1: 0.5", "a at 3: 2.5"]


def test_bars_stack() -> None:
    svg = stacked_bars([1, 2], [("a", [1.0, 2.0]), ("b", [3.0, 0.0])])
    found = re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', svg)
    bars = [tuple(map(float, bar)) for bar in found]
    assert len(bars) == 3  # an empty layer draws nothing
    (a_top, a_height), (b_top, b_height), _ = bars
    assert b_top + b_height == pytest.approx(a_top, abs=0.2)
    assert b_height == pytest.approx(3 * a_height, abs=0.3)


def bars(svg: str) -> list[tuple[float, float]]:
    """(left, width) of each bar."""
    found = re.findall(r'<rect class="[^"]*" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    return [(float(left), float(width)) for left, width in found]


@pytest.mark.parametrize("xs", [[0.05 * i for i in range(-10, 10)], [1, 2, 3, 7], [0, 50, 100]])
def test_bars_do_not_overlap_whatever_their_unit(xs: list[float]) -> None:
    found = bars(stacked_bars(xs, [("a", [1.0] * len(xs))]))
    assert len(found) == len(xs)
    gaps = [b - (a + width) for (a, width), (b, _) in pairwise(found)]
    assert min(gaps) > 0.0
    assert found[0][0] > 46.0 and sum(found[-1]) < 430.0


def test_bars_of_several_spacings_stand_where_their_numbers_say() -> None:
    lefts = [left for left, _ in bars(stacked_bars([0.0, 0.1, 0.4], [("a", [1.0, 1.0, 1.0])]))]
    assert lefts[2] - lefts[1] == pytest.approx(3 * (lefts[1] - lefts[0]), abs=0.5)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.5, 0.5), (1.0, 1.0)], ["0.5", "0.6", "0.7", "0.8", "0.9", "1"]),
        ([(1, 0.0), (3, 1.0)], ["1", "2", "3"]),
    ],
)
def test_shares_have_labels_and_steps_whole_ones(
    points: list[tuple[float, float]], expected: list[str]
) -> None:
    assert re.findall(r'class="mid">([^<]+)<', line_chart([Series("a", points)])) == expected
