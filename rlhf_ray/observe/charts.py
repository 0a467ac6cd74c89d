"""Charts as inline SVG: no script, no net. The page's CSS gives the colours, so themes work.

Series are drawn in the classes c0, c1, …; a point's `<title>` is what browsers show on hover.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, log10

_WIDTH, _HEIGHT = 440.0, 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 8.0, 26.0
_MOST_POINTS = 160
_WIDEST_BAR = 36.0


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) ascending in x; `spread` is drawn as a band of ± around y."""

    label: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[float] = ()
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """The data's ranges, ticks included, and their places in the picture."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    x_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low or 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def line_chart(series: Sequence[Series], *, x_label: str = "step") -> str:
    """Lines over one x axis; the y axis fits the data. No series has no points."""
    thinned = [_thin(one) for one in series]
    xs = [x for one in thinned for x, _ in one.points]
    lows = [y - s for one in thinned for (_, y), s in _with_spread(one)]
    highs = [y + s for one in thinned for (_, y), s in _with_spread(one)]
    frame = _frame(xs, min(lows), max(highs))
    parts = [_axes(frame, x_label)]
    parts += [_band(one, frame, index) for index, one in enumerate(thinned) if one.spread]
    parts += [_line(one, frame, index) for index, one in enumerate(thinned)]
    return _svg(parts, ", ".join(one.label for one in series))


def stacked_bars(
    xs: Sequence[float], layers: Sequence[tuple[str, Sequence[float]]], *, x_label: str = "step"
) -> str:
    """One bar for each x, its layers from the bottom up; all layers are as long as `xs`.

    `xs` ascend, each above the one before; the least gap between two decides how wide a bar is.
    """
    keep = range(0, len(xs), ceil(len(xs) / _MOST_POINTS))
    totals = [sum(values[i] for _, values in layers) for i in keep]
    first, last = xs[keep[0]], xs[keep[-1]]
    gap = min((xs[b] - xs[a] for a, b in pairwise(keep)), default=1.0)
    x_range = (first - gap / 2, last + gap / 2)
    frame = Frame(_x_ticks(first, last), ticks(0.0, max(totals) or 1.0), x_range)
    width = min(max((frame.x(first + gap) - frame.x(first)) * 0.8, 1.0), _WIDEST_BAR)
    parts = [_axes(frame, x_label)]
    for i in keep:
        base = 0.0
        for index, (label, values) in enumerate(layers):
            hint = f"{label} at {xs[i]:g}: {number(values[i])}"
            left = frame.x(xs[i]) - width / 2
            parts.append(_bar(index, hint, left, width, frame.y(base + values[i]), frame.y(base)))
            base += values[i]
    return _svg(parts, ", ".join(label for label, _ in layers))


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that enclose [low, high]: multiples of 1, 2 or 5 times a power of ten.

    A range of no height is widened, so that there are two ticks at least.
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    power = 10.0 ** floor(log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = floor(low / step + 1e-6), ceil(high / step - 1e-6)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A value for an axis or a tooltip, short: 12k, 3.5, 0.02, 3e-05."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{value:.3g}" if size < 1000 else f"{value:.0f}"


def _frame(xs: Sequence[float], low: float, high: float) -> Frame:
    return Frame(_x_ticks(min(xs), max(xs)), ticks(low, high), (min(xs), max(xs)))


def _x_ticks(low: float, high: float) -> list[float]:
    if low == high:
        return [low]
    inside = [tick for tick in ticks(low, high, 6) if low <= tick <= high]
    whole = [tick for tick in inside if tick == int(tick)]
    return whole if len(whole) > 1 else inside  # steps are whole, confidences are not


def _thin(series: Series) -> Series:
    """Means over stretches of equal length, where there are more points than the picture shows."""
    stride = ceil(len(series.points) / _MOST_POINTS)
    if stride == 1:
        return series
    pieces = [series.points[i : i + stride] for i in range(0, len(series.points), stride)]
    points = [(piece[-1][0], sum(y for _, y in piece) / len(piece)) for piece in pieces]
    return Series(series.label, points, series.spread[::stride], series.dots)


def _with_spread(series: Series) -> list[tuple[tuple[float, float], float]]:
    return list(zip(series.points, series.spread or [0.0] * len(series.points), strict=True))


def _axes(frame: Frame, x_label: str) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    decimals = _decimals(frame.y_ticks[1] - frame.y_ticks[0])
    for tick in frame.y_ticks:
        y = frame.y(tick)
        label = number(tick) if abs(tick) >= 1000 else f"{tick:.{decimals}f}"
        kind = "grid zero" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" class="end">{label}</text>')
    for tick in frame.x_ticks:
        parts.append(
            f'<text x="{frame.x(tick):.1f}" y="{bottom + 14}" class="mid">{number(tick)}</text>'
        )
    parts.append(f'<text x="{right}" y="{_HEIGHT - 1}" class="end dim">{escape(x_label)}</text>')
    return "".join(parts)


def _decimals(step: float) -> int:
    """Digits after the point that tell two ticks apart."""
    return max(0, -floor(log10(step) + 1e-9))


def _band(series: Series, frame: Frame, index: int) -> str:
    rows = _with_spread(series)
    upper = [f"{frame.x(x):.1f},{frame.y(y + s):.1f}" for (x, y), s in rows]
    lower = [f"{frame.x(x):.1f},{frame.y(y - s):.1f}" for (x, y), s in reversed(rows)]
    return f'<polygon class="c{index} band" points="{" ".join(upper + lower)}"/>'


def _line(series: Series, frame: Frame, index: int) -> str:
    places = [(frame.x(x), frame.y(y)) for x, y in series.points]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="c{index} line" points="{drawn}"/>']
    shown = "dot" if series.dots or len(places) == 1 else "hover"
    for (x, y), (at, value) in zip(places, series.points, strict=True):
        parts.append(
            f'<circle class="c{index} {shown}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
            f"<title>{escape(series.label)} at {at:g}: {number(value)}</title></circle>"
        )
    return "".join(parts)


def _bar(index: int, hint: str, left: float, width: float, top: float, bottom: float) -> str:
    if bottom - top < 0.05:
        return ""
    return (
        f'<rect class="c{index} bar" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{bottom - top:.1f}"><title>{escape(hint)}</title></rect>'
    )


def _svg(parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
