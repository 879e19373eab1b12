"""Charts as SVG: drawn once, without a script, in the colours that a page's style gives to the classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from edgepack.report.render.cells import words
from edgepack.report.report import Axis, Bars, Chart, Mark, Series, Style

WIDTH, HEIGHT = 400, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 26, 44
"""A plot and the room around it; units are pixels on a narrow phone."""
MARGIN = 0.05
"""Of the span of an axis, on both sides."""
TICKS = 5
COLORS = 8
"""Classes c0 to c7."""
RADIUS: dict[Style, float] = {"small": 2.4, "point": 4.5, "fixed": 5.5, "line": 0.0, "steps": 0.0}
LONGEST = 52
"""Letters of a name beside bars."""
LARGEST = 24
"""Of many things, as many have bars."""
ROW, BAR, GAP = 16, 13, 8
CORNERS = (
    ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)),
    ((0.0, -1.4), (1.4, 0.0), (0.0, 1.4), (-1.4, 0.0)),
    ((0.0, -1.3), (1.3, 1.0), (-1.3, 1.0)),
)
"""Of a square, a diamond and a triangle around the origin."""


@dataclass(frozen=True)
class Scale:
    """Where values of an axis lie on the plot."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def at(self, value: float) -> float:
        """Of one value, in pixels."""
        low, high, value = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, base: int) -> list[float]:
        """Round values within it, a few."""
        found = _powers(self.low, self.high, base) if self.log else []
        return found if len(found) > 1 else _steps(self.low, self.high)


def _powers(low: float, high: float, base: int) -> list[float]:
    exponents = range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)) + 1)
    whole = [float(base) ** power for power in exponents]
    parts = whole if base == 2 else [digit * power for power in whole for digit in (1, 2, 5)]
    within = [value for value in parts if low <= value <= high]
    if len(within) > TICKS:
        within = [value for value in whole if low <= value <= high]
    return within[:: max(1, math.ceil(len(within) / TICKS))]


def _steps(low: float, high: float) -> list[float]:
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> Scale:
    low, high = min(values), max(values)
    if axis.log and low > 0:
        spread = max((high / low) ** MARGIN, 1.05)
        return Scale(low / spread, high * spread, start, end, True)
    spread = (high - low) * MARGIN or max(abs(low) * MARGIN, 1e-12)
    return Scale(low - spread, high + spread, start, end, False)


def chart_svg(chart: Chart) -> str:
    """The drawing; each mark says what it is when it is pointed at. A chart without marks has none."""
    marks = [mark for series in chart.series for mark in series.marks]
    if not marks:
        return ""
    xs = [x for mark in marks for x in (mark.x, *(mark.x_range or ()))]
    ys = [y for mark in marks for y in (mark.y, *(mark.y_range or ()))]
    across = _scale(chart.x, [*xs, *_near(chart, xs)], LEFT, WIDTH - RIGHT)
    up = _scale(chart.y, ys, HEIGHT - BOTTOM, TOP)
    parts = [*_axes(chart, across, up), *_rules(chart, across)]
    # What stands back is drawn first.
    for index, series in sorted(enumerate(chart.series), key=lambda each: RADIUS[each[1].style] or 3.0):
        parts += _series(series, index, chart, across, up)
    return _svg(HEIGHT, f"{chart.title}: {len(marks)} values; the table below has them", parts)


def _near(chart: Chart, xs: Sequence[float]) -> Iterator[float]:
    """Rules that would not squeeze all else."""
    low, high = min(xs), max(xs)
    for rule in chart.rules:
        if (low / 4 <= rule.x <= high * 4) if chart.x.log else (2 * low - high <= rule.x <= 2 * high - low):
            yield rule.x


def _axes(chart: Chart, across: Scale, up: Scale) -> Iterator[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in up.ticks(_base(chart.y)):
        y = up.at(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>'
        yield _text(LEFT - 5, y + 4, _tick(value, chart.y), "end")
    for value in across.ticks(_base(chart.x)):
        x = across.at(value)
        yield f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>'
        side = "middle" if x < right - 20 else "end"
        yield _text(x if side == "middle" else right, bottom + 15, _tick(value, chart.x), side)
    yield f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
    yield _text(2, 12, chart.y.header or chart.y.key, "start")
    yield _text(right, HEIGHT - 8, chart.x.header or chart.x.key, "end")


def _tick(value: float, axis: Axis) -> str:
    return words(_whole(value), axis.unit)


def _base(axis: Axis) -> int:
    return 2 if axis.unit == "binary" else 10


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


def _rules(chart: Chart, across: Scale) -> Iterator[str]:
    within = [rule for rule in chart.rules if across.low <= rule.x <= across.high]
    for index, rule in enumerate(sorted(within, key=lambda rule: rule.x)):
        x = across.at(rule.x)
        side = "end" if x > WIDTH / 2 else "start"
        yield f'<path class="rule" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        yield _text(x + (-4 if side == "end" else 4), TOP + 12 + 13 * (index % 6), rule.name, side)


def _series(series: Series, index: int, chart: Chart, across: Scale, up: Scale) -> Iterator[str]:
    color = f"c{index % COLORS}"
    if series.style in ("line", "steps"):
        yield f'<path class="line {color} {series.style}" d="{_joined(series, across, up)}"/>'
        return
    for mark in series.marks:
        x, y = across.at(mark.x), up.at(mark.y)
        if mark.x_range is not None:
            left, right = map(across.at, mark.x_range)
            yield f'<path class="range {color}" d="M{left:.1f} {y:.1f}H{right:.1f}"/>'
        if mark.y_range is not None:
            low, high = map(up.at, mark.y_range)
            yield f'<path class="range {color}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
        outline = _outline(index, x, y, RADIUS[series.style])
        said = ", ".join([mark.name or series.name, *_values(mark, chart)])
        yield f'<path class="{series.style} {color}" d="{outline}"><title>{escape(said)}</title></path>'


def _values(mark: Mark, chart: Chart) -> tuple[str, str]:
    return words(mark.x, chart.x.unit), words(mark.y, chart.y.unit)


def _joined(series: Series, across: Scale, up: Scale) -> str:
    points = [(across.at(mark.x), up.at(mark.y)) for mark in series.marks]
    first, *others = points
    path = [f"M{first[0]:.1f} {first[1]:.1f}"]
    for x, y in others:
        path.append(f"H{x:.1f}V{y:.1f}" if series.style == "steps" else f"L{x:.1f} {y:.1f}")
    return "".join(path)


def _outline(index: int, x: float, y: float, r: float) -> str:
    """A shape of its own for each series: colours alone do not tell them apart for everybody."""
    if index % 4 == 0:
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    corners = CORNERS[index % 4 - 1]
    return "M" + "L".join(f"{x + r * right:.1f} {y + r * down:.1f}" for right, down in corners) + "z"


def key_svg(series: Series, index: int) -> str:
    """The sign of a series in the legend."""
    color = f"c{index % COLORS}"
    if series.style in ("line", "steps"):
        sign = f'<path class="line {color} {series.style}" d="M1 7H17"/>'
    else:
        sign = f'<path class="{series.style} {color}" d="{_outline(index, 9, 7, max(RADIUS[series.style], 3))}"/>'
    return f'<svg class="key" viewBox="0 0 18 14" aria-hidden="true">{sign}</svg>'


def bar_key_svg(index: int) -> str:
    """The same of bars."""
    bar = f'<rect class="bar c{index % COLORS}" x="2" y="2" width="14" height="10"/>'
    return f'<svg class="key" viewBox="0 0 18 14" aria-hidden="true">{bar}</svg>'


def largest(bars: Bars) -> Bars:
    """Those of the things that have the longest bars, in their order."""
    if len(bars.names) <= LARGEST:
        return bars
    most = [max((own[index] or 0.0 for _, own in bars.series), default=0.0) for index in range(len(bars.names))]
    kept = sorted(sorted(range(len(most)), key=lambda index: -most[index])[:LARGEST])
    series = tuple((name, tuple(own[index] for index in kept)) for name, own in bars.series)
    return Bars(bars.title, bars.axis, tuple(bars.names[index] for index in kept), series, bars.note)


def bars_svg(bars: Bars) -> str:
    """A name, and below it a bar for each series."""
    values = [value for _, own in bars.series for value in own if value is not None]
    longest = max((value for value in values if value > 0), default=1.0)
    parts, y = [], 0.0
    for index, name in enumerate(bars.names):
        parts.append(_text(0, y + ROW - 4, _short(name), "start"))
        y += ROW
        for number, (_, own) in enumerate(bars.series):
            parts += _bar(own[index], number, y, longest, bars)
            y += BAR
        y += GAP
    return _svg(y, f"{bars.title}: bars of {len(bars.names)}; the table below has their figures", parts)


def _bar(value: float | None, number: int, y: float, longest: float, bars: Bars) -> Iterator[str]:
    if value is None:
        return
    length = max(value, 0.0) / longest * (WIDTH - 90)
    yield f'<rect class="bar c{number % COLORS}" x="0" y="{y:.1f}" width="{max(length, 1):.1f}" height="{BAR - 2}"/>'
    yield _text(length + 6, y + BAR - 2.5, words(_whole(value), bars.axis.unit), "start")


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 + 1 :]}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, label: str, parts: Iterable[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {height:.0f}"'
    return f'<svg class="chart" {size} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
