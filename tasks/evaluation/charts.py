"""Charts as inline SVG: pure functions from figures to markup, no script, no external file.

Colours and fonts come from the page's style sheet through classes, so that one drawing serves
light and dark. Everything that comes from data is escaped. Coordinates are pixels of a drawing
of `WIDTH` by a height; the browser scales it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH = 330.0
CHARACTER = 6.2
"""Width of a character of a label, px: an estimate on the safe side for system fonts at 11 px."""
LINE = 13.0
"""Height of a line of a label, px."""


@dataclass(frozen=True)
class Scale:
    """From a figure to a pixel: ``low`` falls on ``start``, ``high`` on ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of ``value``; a log scale wants it positive."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)


@dataclass(frozen=True)
class Point:
    """A model in a scatter plot."""

    names: tuple[str, ...]
    x: float
    y: float
    kind: str
    """Style class and marker: ``teacher``, ``linear``, ``candidate`` or ``stage``."""
    below: bool = False
    """Worse than the axis reaches: drawn as an arrow at its foot, its figure in the label."""
    front: bool = False


@dataclass(frozen=True)
class Bar:
    """A line of a bar chart: a label and a figure for each series, in the series' order."""

    label: str
    values: tuple[float | None, ...]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round positions from ``low`` to ``high``: 1, 2, 5 of each decade, fewer where too many.

    Raises:
        ValueError: the range is empty or not positive.
    """
    if not 0 < low < high:
        raise ValueError(f"found a range from {low} to {high}, expected 0 < low < high")
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**d for d in decades for s in steps]
        inside = [float(f"{t:.6g}") for t in ticks if low <= t * (1 + 1e-9) and t <= high]
        if len(inside) <= most:
            return inside
    return inside[:: math.ceil(len(inside) / most)]


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``, at most ``most``.

    Raises:
        ValueError: the range is empty.
    """
    if not low < high:
        raise ValueError(f"found a range from {low} to {high}, expected low < high")
    power = 10.0 ** (math.floor(math.log10(high - low)) - 1)
    for step in (s * power * f for f in (1, 10, 100) for s in (1, 2, 5)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            break
    return [float(f"{i * step:.6g}") for i in range(first, last + 1)]


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_text: Callable[[float], str],
    foot: float,
) -> str:
    """Quality over a cost on a log axis, the front drawn as steps; better is up and to the left.

    Args:
        points: at least one, ``x`` positive, ``y`` in per cent.
        title: for those who do not see the drawing.
        x_label: cost and its unit.
        y_label: quality and its unit.
        x_text: a tick of the cost axis in words.
        foot: the lowest quality that the axis shows.
    """
    height, left, right, top, bottom = 270.0, 34.0, 320.0, 26.0, 226.0
    xs, best = [p.x for p in points], max(p.y for p in points)
    x = Scale(min(xs) / 2, max(xs) * 2, left, right, log=True)
    y = Scale(foot, best + 0.12 * max(best - foot, 0.5), bottom, top)
    parts = [_text(left - 30, 12, y_label, "label")]
    for tick in linear_ticks(y.low, y.high):
        parts.append(_line(left, y(tick), right, y(tick), "grid"))
        parts.append(_text(left - 5, y(tick) + 3.5, f"{tick:g}", "tick end"))
    for tick in log_ticks(x.low, x.high):
        parts.append(_line(x(tick), top, x(tick), bottom, "grid"))
        parts.append(_text(x(tick), bottom + 15, x_text(tick), "tick mid"))
    parts.append(_text((left + right) / 2, height - 8, x_label, "label mid"))
    front = sorted((p for p in points if p.front), key=lambda p: p.x)
    parts.append(_steps([(x(p.x), y(max(p.y, foot))) for p in front], right))
    places = [(x(p.x), y(max(p.y, foot))) for p in points]
    labels = [", ".join(p.names) + (f" {p.y:.1f} %" if p.below else "") for p in points]
    widths = [len(label) * CHARACTER for label in labels]
    boxes = place_labels(places, widths, (0, WIDTH), floor=bottom)
    for point, (px, py), label, (lx, ly) in zip(points, places, labels, boxes, strict=True):
        hint = f"{', '.join(point.names)}: {point.y:.2f} %, {x_text(point.x)}"
        parts.append(_marker(point, px, py, hint))
        parts.append(_text(lx, ly, label, f"name mid {_word(point.kind)}"))
    return _svg(parts, height, title)


def place_labels(
    places: Sequence[tuple[float, float]],
    widths: Sequence[float],
    reach: tuple[float, float],
    *,
    floor: float,
) -> list[tuple[float, float]]:
    """Where labels stand so that they cover neither points nor each other, as far as they can.

    Each takes the first free place of above, below, right, left and further away, in the order
    of the points; where none is free, the one that covers least.

    Args:
        places: of the points, px.
        widths: of the labels, px.
        reach: left and right end of the drawing, px.
        floor: beneath it stand the ticks, px.

    Returns:
        For each label the middle of its base line, px.
    """
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in places]
    taken.append((reach[0], floor + 2, reach[1], floor + 99))
    found = []
    for (px, py), width in zip(places, widths, strict=True):
        half = width / 2
        tries = [(px, py - 10.0), (px, py + 19.0), (px + half + 9, py + 4), (px - half - 9, py + 4)]
        tries += [(px + dx * half, py + dy) for dy in (-24.0, 33.0, -38.0, 47.0)
                  for dx in (0, 0.6, -0.6)]  # fmt: skip
        inside = [(min(max(tx, reach[0] + half), reach[1] - half), ty) for tx, ty in tries]
        boxes = [(tx - half, ty - LINE + 3, tx + half, ty + 3) for tx, ty in inside]
        cost = [sum(_overlap(box, other) for other in taken) for box in boxes]
        chosen = cost.index(min(cost))
        taken.append(boxes[chosen])
        found.append(inside[chosen])
    return found


def reliability(bins: Sequence[Mapping[str, Any]], *, title: str, kind: str) -> str:
    """How often answers of a confidence are right, over that confidence (Guo et al. 2017).

    Args:
        bins: of confidence, each with ``low``, ``high``, ``n``, ``confidence``, ``accuracy``;
            empty ones are left out. The foot shows how the answers spread over them.
        title: for those who do not see the drawing.
        kind: style class of the line.
    """
    height, left, right, top, bottom, base = 330.0, 34.0, 320.0, 24.0, 238.0, 288.0
    x, y = Scale(0, 1, left, right), Scale(0, 1, bottom, top)
    parts = [_text(left - 30, 12, "right, %", "label")]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_line(left, y(tick), right, y(tick), "grid"))
        parts.append(_text(left - 5, y(tick) + 3.5, f"{100 * tick:g}", "tick end"))
        parts.append(_text(x(tick), base + 15, f"{100 * tick:g}", "tick mid"))
    parts.append(_line(x(0), y(0), x(1), y(1), "ideal"))
    filled = [b for b in bins if b["n"] and b["accuracy"] is not None]
    most = max((b["n"] for b in filled), default=1)
    for b in filled:
        hint = f"confidence {b['confidence']:.3f}, right {b['accuracy']:.3f}, {b['n']:,} texts"
        wide, tall = x(b["high"]) - x(b["low"]) - 1.5, 36 * b["n"] / most
        place = f'x="{_px(x(b["low"]) + 0.75)}" width="{_px(wide)}"'
        parts.append(f'<rect class="share {_word(kind)}" {place} y="{_px(base - tall)}" '
                     f'height="{_px(tall)}"><title>{escape(hint)}</title></rect>')  # fmt: skip
    places = [(x(b["confidence"]), y(b["accuracy"])) for b in filled]
    path = " ".join(f"{_px(px)},{_px(py)}" for px, py in places)
    parts.append(f'<polyline class="curve {_word(kind)}" points="{path}"/>')
    for (px, py), b in zip(places, filled, strict=True):
        hint = f"confidence {b['confidence']:.3f}, right {b['accuracy']:.3f}, {b['n']:,} texts"
        parts.append(f'<circle class="dot {_word(kind)}" cx="{_px(px)}" cy="{_px(py)}" r="4">'
                     f"<title>{escape(hint)}</title></circle>")  # fmt: skip
    parts.append(_line(left, base, right, base, "axis"))
    parts.append(_text((left + right) / 2, height - 8, "confidence of the answer, %", "label mid"))
    return _svg(parts, height, title)


def bars(
    rows: Sequence[Bar], *, title: str, kinds: Sequence[str], text: Callable[[float], str]
) -> str:
    """Horizontal bars, each line's label above its bars; a negative figure goes left of zero.

    Args:
        rows: from top to bottom.
        title: for those who do not see the drawing.
        kinds: style class of each series.
        text: a figure with its unit.
    """
    thick, gap = 11.0, 9.0
    values = [v for row in rows for v in row.values if v is not None]
    low, high = min([0.0, *values]), max([0.0, *values])
    high = high if high > low else low + 1.0
    room = max([len(text(v)) for v in values], default=0) * CHARACTER + 6
    x = Scale(low, high, 2 + (room if low < 0 else 0), WIDTH - room)
    parts, top = [], 0.0
    for row in rows:
        name = row.label if len(row.label) <= 56 else f"{row.label[:55]}…"
        parts.append(_text(2, top + 11, name, "name"))
        top += 16
        first = top
        for kind, value in zip(kinds, row.values, strict=True):
            if value is None:
                continue
            start, end = sorted((x(0), x(value)))
            hint = escape(f"{row.label}: {text(value)}")
            parts.append(f'<rect class="bar {_word(kind)}" x="{_px(start)}" y="{_px(top)}" '
                         f'width="{_px(max(end - start, 1))}" height="{_px(thick)}" rx="2">'
                         f"<title>{hint}</title></rect>")  # fmt: skip
            side = "tick end" if value < 0 else "tick"
            at = start - 5 if value < 0 else end + 5
            parts.append(_text(at, top + 9.5, text(value), side))
            top += thick + 2
        parts.append(_line(x(0), first - 2, x(0), max(top, first + thick), "axis"))
        top += gap
    return _svg(parts, top - gap + 2, title)


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    head = f'<svg viewBox="0 0 {_px(WIDTH)} {_px(height)}" role="img" aria-label="{escape(title)}">'
    return head + "".join(parts) + "</svg>"


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{_px(x)}" y="{_px(y)}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    ends = " ".join(f'{name}="{_px(v)}"'
                    for name, v in (("x1", x1), ("y1", y1), ("x2", x2), ("y2", y2)))  # fmt: skip
    return f'<line class="{style}" {ends}/>'


def _steps(places: Sequence[tuple[float, float]], right: float) -> str:
    """The front: what the best quality is for at most so much cost."""
    if not places:
        return ""
    path = f"M{_px(places[0][0])} {_px(places[0][1])}"
    path += "".join(f"H{_px(px)}V{_px(py)}" for px, py in places[1:])
    return f'<path class="front" d="{path}H{_px(right)}"/>'


def _marker(point: Point, x: float, y: float, hint: str) -> str:
    """A circle for a stage, square for the teacher, triangle for linear, diamond for ours."""
    shapes = {
        "teacher": f"M{_px(x - 5)} {_px(y - 5)}h10v10h-10z",
        "linear": f"M{_px(x)} {_px(y - 6)}l6 11h-12z",
        "candidate": f"M{_px(x)} {_px(y - 7)}l7 7l-7 7l-7 -7z",
    }
    path = f"M{_px(x)} {_px(y + 6)}l6 -11h-12z" if point.below else shapes.get(
        point.kind, f"M{_px(x - 5)} {_px(y)}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z")  # fmt: skip
    return f'<path class="dot {_word(point.kind)}" d="{path}"><title>{escape(hint)}</title></path>'


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Area that two boxes (left, top, right, bottom) share, square px."""
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0.0) * max(tall, 0.0)


def _word(kind: str) -> str:
    return "".join(c for c in kind if c.isalnum())


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
