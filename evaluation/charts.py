"""Charts as inline SVG, by hand: they need no script, take the colours of the page, and are sharp at any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TypeGuard

Points = list[tuple[float, float]]

WIDTH, HEIGHT = 360, 220  # at which text is as large as it says on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 36
COLOURS = 8  # that the style sheet defines; more lines begin again
MOST_POINTS = 400  # of a line; more are put together, several to their mean
OPENING = 0.05  # of the horizontal axis, where a line of many points may leave the picture at the top
MANY = 20


@dataclass(frozen=True)
class Line:
    """One curve; points that are no finite numbers are left out."""

    label: str
    points: Points
    colour: int = 0
    faint: bool = False
    """Thin and pale, for what is noisy and stands behind another line."""
    marked: bool = False
    """With a dot at every point."""


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis, and `levels` by label as horizontal lines."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    levels: dict[str, float] = field(default_factory=dict)
    log: bool = False
    """A logarithmic vertical axis."""
    from_zero: bool = False
    """A vertical axis that begins at zero."""

    def __bool__(self) -> bool:
        """Whether there is anything to draw."""
        return any(finite(line.points) for line in self.lines)

    @property
    def legend(self) -> list[Line]:
        """The lines to name: all, where there is more than one."""
        return [line for line in self.lines if finite(line.points)] if len(self.lines) > 1 else []

    @property
    def svg(self) -> str:
        """The picture, as text that needs no escaping; the title and the legend are for the page to write."""
        lines = [(line, thinned(finite(line.points))) for line in self.lines]
        scale = _Scale.of([points for _, points in lines], list(self.levels.values()), self.log, self.from_zero)
        label = escape(f"{self.title}: {self.y} over {self.x}", quote=True)
        parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">', *self._axes(scale)]
        parts += [_level(scale, name, value) for name, value in self.levels.items()]
        for line, points in lines:
            style = f"line c{line.colour % COLOURS}{' faint' if line.faint else ''}"
            places = [(scale.x(x), scale.y(y)) for x, y in points]
            parts.append(f'<polyline class="{style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
            if line.marked or len(points) == 1:
                shown = [(x, y) for x, y in places if y >= TOP]
                parts += [
                    f'<circle class="dot c{line.colour % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
                    for x, y in shown
                ]
        return "".join(parts) + "</svg>"

    def _axes(self, scale: _Scale) -> list[str]:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts = []
        for value in scale.y_ticks:
            y = scale.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>')
        for value in scale.x_ticks:
            x = scale.x(value)
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{short(value)}</text>')
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        parts.append(f'<text x="{right}" y="{HEIGHT - 4}" text-anchor="end" class="name">{escape(self.x)}</text>')
        return parts


@dataclass(frozen=True)
class _Scale:
    """From values to places in the picture; what is too high for it leaves it at the top."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float
    log: bool

    @staticmethod
    def of(lines: Sequence[Points], levels: Sequence[float], log: bool, from_zero: bool) -> _Scale:
        xs = [x for points in lines for x, _ in points]
        low_x, high_x = min(xs), max(xs)
        begin = low_x + OPENING * (high_x - low_x)
        # The first values of a run are far above all others, and would press them flat.
        settled = [y for points in lines for x, y in points if x >= begin or len(points) < MANY] + list(levels)
        low_y, high_y = min([*(y for points in lines for _, y in points), *levels]), max(settled)
        if log and low_y > 0:
            margin = max(0.04 * math.log(high_y / low_y), 0.02)
            return _Scale(low_x, high_x, low_y * math.exp(-margin), high_y * math.exp(margin), True)
        margin = 0.06 * (high_y - low_y) or 0.05 * abs(high_y) or 1
        return _Scale(low_x, high_x, min(0.0, low_y) if from_zero else low_y - margin, high_y + margin, False)

    def x(self, value: float) -> float:
        width = WIDTH - LEFT - RIGHT
        share = (value - self.low_x) / (self.high_x - self.low_x) if self.high_x > self.low_x else 0.5
        return LEFT + width * share

    def y(self, value: float) -> float:
        low, high = self.low_y, self.high_y
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-300))
        share = (value - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    @property
    def x_ticks(self) -> list[float]:
        return ticks(self.low_x, self.high_x, 5)

    @property
    def y_ticks(self) -> list[float]:
        return log_ticks(self.low_y, self.high_y) if self.log else ticks(self.low_y, self.high_y, 6)


def _level(scale: _Scale, name: str, value: float) -> str:
    """A dashed line with its name on the side where a falling curve is far: a low one at the left, below the line."""
    y, right = scale.y(value), WIDTH - RIGHT
    low = y > (TOP + HEIGHT - BOTTOM) / 2
    place = f'x="{LEFT + 4}" y="{y + 12:.1f}"' if low else f'x="{right}" y="{y - 3:.1f}" text-anchor="end"'
    return (
        f'<line class="level" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="name" {place}>{escape(name)} {value:.2f}</text>'
    )


@dataclass(frozen=True)
class Interval:
    """A value with its interval, None where there is none."""

    label: str
    value: float
    bounds: Sequence[float] | None
    strong: bool = False


def interval_chart(rows: Sequence[Interval], unit: str) -> str:
    """Values as dots with their intervals as whiskers, one a row, over a common horizontal axis."""
    height = 22 * len(rows) + 36
    left, right = 106, WIDTH - 42
    ends = [end for row in rows for end in (row.value, *(row.bounds or []))]
    margin = 0.05 * (max(ends) - min(ends)) or 0.05 * max(ends)
    low, high = min(ends) - margin, max(ends) + margin

    def place(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(unit, quote=True)} by predictor">']
    for value in ticks(low, high, 4):
        x = place(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height - 32}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 19}" text-anchor="middle">{short(value)}</text>')
    for number, row in enumerate(rows):
        y, colour = 22 * number + 13, "c0" if row.strong else "c7"
        name = row.label if len(row.label) <= 18 else f"…{row.label[-17:]}"
        parts.append(
            f'<text class="{"strong" if row.strong else "name"}" x="{left - 8}" y="{y + 4}" text-anchor="end">'
            f"{escape(name)}</text>"
        )
        if row.bounds:
            begin, end = (place(bound) for bound in row.bounds)
            parts.append(f'<line class="line {colour}" x1="{begin:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot {colour}" cx="{place(row.value):.1f}" cy="{y}" r="3.5"/>')
        parts.append(f'<text x="{WIDTH - 2}" y="{y + 4}" text-anchor="end">{row.value:.3f}</text>')
    parts.append(f'<text class="name" x="{right}" y="{height - 5}" text-anchor="end">{escape(unit)}</text></svg>')
    return "".join(parts)


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` can be drawn: a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def finite(points: Points) -> Points:
    """The points whose two values are finite numbers."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def thinned(points: Points) -> Points:
    """At most `MOST_POINTS`: neighbours become one at their mean."""
    together = -(-len(points) // MOST_POINTS)
    if together <= 1:
        return points
    parts = [points[start : start + together] for start in range(0, len(points), together)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values between `low` and `high`, at steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values for a logarithmic axis, with finer ones where it spans little."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(found) >= 3:
            return found
    return ticks(low, high, 5)


def short(value: float, digits: int = 3) -> str:
    """A number as an axis shows it: 1500000 as 1.5M, 0.0005 as 5e-4; `digits` are those of what has a prefix."""
    if value == 0:
        return "0"
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        text = f"{value / size:.{digits}g}"
        if abs(float(text)) >= 1:  # 999,999 too
            return text + prefix
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"
