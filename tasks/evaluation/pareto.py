"""Which models are beaten on every count, and a picture of those that are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

INK, MUTED, LINE = "#1f2933", "#7b8794", "#2563eb"
WINDOW = 8.0
"""Points of quality under the best that the axis shows; what is worse stands at its foot."""
COLOURS = {"teacher": "#b45309", "linear": "#6b7280", "deploy": "#15803d"}


def pareto_front(
    points: Sequence[Mapping[str, float | None]],
    maximise: Sequence[str],
    minimise: Sequence[str],
) -> list[int]:
    """Indices of the points that no other point dominates, in the order given.

    A point dominates another that it equals or beats on every axis and beats on one. Equal
    points all stay; a point without a figure on some axis is on no front.
    """
    found = []
    for index, point in enumerate(points):
        costs = _costs(point, maximise, minimise)
        if costs is None:
            continue
        others = (_costs(other, maximise, minimise) for other in points)
        if not any(other is not None and _dominates(other, costs) for other in others):
            found.append(index)
    return found


def plot_pareto(summary: Mapping[str, Any], path: Path) -> None:
    """Draw quality over bytes and over p50 latency, both logarithmic, with the fronts.

    Args:
        summary: as `reports/summary.json`.
        path: the PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    primary = summary["primary"]
    points = [_point(row, primary) for row in summary["stages"]]
    _panel(left, points, "bytes", "size of all servable files, MB (log scale)")
    _panel(right, points, "p50", "text to label, p50 in ms, batch 1, one thread (log scale)")
    left.set_ylabel(f"{primary.replace('_', ' ')} on {summary['split']}, %", color=INK)
    figure.suptitle(
        f"Quality against size and speed, {summary['n']:,} {summary['split']} texts",
        fontsize=12,
        color=INK,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # without the version in the file, the same figures give the same bytes
    figure.savefig(path, format="png", metadata={"Software": None})


def _costs(
    point: Mapping[str, float | None], maximise: Sequence[str], minimise: Sequence[str]
) -> tuple[float, ...] | None:
    gains, prices = [point.get(axis) for axis in maximise], [point.get(axis) for axis in minimise]
    if any(value is None or value != value for value in gains + prices):
        return None
    return tuple([-float(g or 0) for g in gains] + [float(p or 0) for p in prices])


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def _point(row: Mapping[str, Any], primary: str) -> dict[str, Any]:
    quality = row["quality"].get(primary)
    latency = row["latency_ms"]
    return {
        "stage": row["stage"],
        "quality": None if quality is None else 100 * quality,
        "bytes": None if row["file_bytes"] is None else row["file_bytes"] / 1e6,
        "p50": None if latency is None else latency["p50"],
    }


def _panel(axes: Any, points: Sequence[Mapping[str, Any]], axis: str, label: str) -> None:
    """One scatter of quality over ``axis``; better is up and to the left."""
    shown = merged([p for p in points if p[axis] is not None and p["quality"] is not None], axis)
    best = [shown[i] for i in pareto_front(shown, ["quality"], [axis])]
    front = sorted(best, key=lambda point: float(point[axis]))
    costs, qualities = [p[axis] for p in front], [p["quality"] for p in front]
    axes.step(costs, qualities, where="post", color=LINE, alpha=0.5, linewidth=1.5, zorder=2)
    foot = _frame(axes, shown, axis, label)
    for point in shown:
        outside = point["quality"] < foot
        place = (point[axis], foot if outside else point["quality"])
        marker = "v" if outside else "o"
        style = {"color": _colour(point), "edgecolor": "white", "clip_on": False, "zorder": 3}
        axes.scatter(*place, s=52, marker=marker, **style)
        name = ", ".join(point["names"]) + (f" {point['quality']:.1f} %" if outside else "")
        axes.annotate(
            name,
            place,
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=_colour(point),
            zorder=4,
        )


def merged(points: Sequence[Mapping[str, Any]], axis: str) -> list[dict[str, Any]]:
    """Points that would cover each other as one, with all their names."""
    found: list[dict[str, Any]] = []
    for point in points:
        near = [
            other
            for other in found
            if abs(other["quality"] - point["quality"]) < 0.06
            and abs(other[axis] / point[axis] - 1) < 0.03
        ]
        if near:
            near[0]["names"].append(point["stage"])
        else:
            found.append({**point, "names": [point["stage"]]})
    return found


def _colour(point: Mapping[str, Any]) -> str:
    return next((COLOURS[name] for name in COLOURS if name in point["names"]), LINE)


def _frame(axes: Any, shown: Sequence[Mapping[str, Any]], axis: str, label: str) -> float:
    """Axes, limits and ticks; returns the lowest quality inside, in %."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_xscale("log")
    axes.set_xlabel(label, color=INK)
    axes.grid(True, which="major", color="#e4e7eb", linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(which="both", colors=MUTED)
    axes.minorticks_off()
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if not shown:
        return 0.0
    low, high = min(p[axis] for p in shown), max(p[axis] for p in shown)
    axes.set_xlim(low / 2, high * 2)
    best = max(p["quality"] for p in shown)
    worst = min(p["quality"] for p in shown if p["quality"] >= best - WINDOW)
    room = max(best - worst, 0.5)
    foot = worst - 0.25 * room
    axes.set_ylim(foot, best + 0.2 * room)
    return float(foot)
