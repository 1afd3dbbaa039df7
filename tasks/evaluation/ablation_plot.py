"""A picture of what each technique of a recipe is worth, from `ablation.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

INK, MUTED, GAIN, LOSS = "#1f2933", "#7b8794", "#2563eb", "#b45309"


def plot_ablation(report: Mapping[str, Any], path: Path) -> bool:
    """Draw what each technique is worth: points of quality, bytes and time saved, in %.

    Returns:
        Whether there was anything to draw; without a finished technique nothing is written.
    """
    shown = [one for one in report["techniques"] if one["points"]]
    if not shown:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.7 + 0.42 * len(shown)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    points, size, time = figure.subplots(1, 3, sharey=True)
    _bars(points, [bar(one["points"]) for one in shown], "+.2f",
          f"{report['primary']} it adds, points")  # fmt: skip
    _bars(size, [bar(one["smaller"], saved) for one in shown], ".0f", "bytes it saves, %")
    _bars(time, [bar(one["faster"], saved) for one in shown], ".0f", "p50 time it saves, %")
    points.set_yticks(range(len(shown)), [one["name"] for one in shown], color=INK)
    points.invert_yaxis()
    seeds = len(report["seeds"])
    figure.suptitle(
        f"What each technique is worth: {report['recipe'] or 'params.yaml'}, {report['n']:,} "
        f"{report['split']} texts, {seeds} {report['by']}{'s' * (seeds > 1)}"
        + (f", 95 % intervals over {report['by']}s" if seeds > 1 else ", no intervals"),
        fontsize=12,
        color=INK,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # without the version in the file, the same figures give the same bytes
    figure.savefig(path, format="png", metadata={"Software": None})
    return True


def saved(ratio: float) -> float:
    """What a ratio without over with saves, in % of the model without."""
    return 100.0 * (1.0 - 1.0 / ratio)


def bar(
    found: Mapping[str, Any], scale: Callable[[float], float] = float
) -> tuple[float, float, float]:
    """Length of a bar, and how far its interval goes down and up from there."""
    mean = scale(found["mean"])
    if found["low"] is None:
        return mean, 0.0, 0.0
    return mean, mean - scale(found["low"]), scale(found["high"]) - mean


def _bars(axes: Any, bars: Sequence[tuple[float, float, float]], form: str, label: str) -> None:
    """One panel of horizontal bars, first on top, with intervals and numbers."""
    lengths = [length for length, _, _ in bars]
    places = range(len(bars))
    colours = [GAIN if length >= 0 else LOSS for length in lengths]
    axes.barh(places, lengths, height=0.62, color=colours, alpha=0.85, zorder=2)
    if any(down or up for _, down, up in bars):
        ends = [[max(down, 0.0) for _, down, _ in bars], [max(up, 0.0) for _, _, up in bars]]
        axes.errorbar(lengths, places, xerr=ends, fmt="none", ecolor=INK, capsize=3, zorder=3)
    for place, (length, down, up) in zip(places, bars, strict=True):
        right = length >= 0
        axes.annotate(
            f"{length:{form}}", (length + up if right else length - down, place),
            xytext=(5 if right else -5, 0), textcoords="offset points", va="center",
            ha="left" if right else "right", fontsize=9, color=INK, zorder=4,
        )  # fmt: skip
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
    axes.margins(x=0.22)
    axes.set_xlabel(label, color=INK)
    axes.grid(True, axis="x", color="#e4e7eb", linewidth=0.8, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=MUTED, length=0)
