"""What is looked at in each round, before a cut is baked in: how sharp the loss is, what is left.

`sharpness` follows Li et al. (2018, "Visualizing the loss landscape of neural nets", section 4)
in how a random direction is scaled, and Jiang et al. (2020, "Fantastic generalization measures
and where to find them") in taking the rise of the loss under perturbations that are relative to
the weights as the measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.modeling.surgery import LayerShape
from tasks.pruning.curves import draw_curves

CHUNK = 1 << 14
"""Weights that noise is drawn for at a time: what a direction takes beyond the saved weights."""
INK, MUTED = "#1f2933", "#7b8794"
DROPPED = "#e4e7eb"
CURVES = (9.0, 2.8)
"""Width and height of the curves of damage, inches."""
DARK_FROM = 0.6
"""Share kept from which a cell is so dark that its number is white."""


@torch.no_grad()
def sharpness(
    model: nn.Module,
    loss: Callable[[nn.Module], float],
    *,
    radius: float,
    samples: int,
    seed: int,
) -> float:
    """Mean rise of the loss when every row of every matrix moves by a share of its own norm.

    Each sample draws a Gaussian direction d and moves each row w (a filter in the paper: all
    that leads into one output, or one row of an embedding table) to w + radius · d · ‖w‖ / ‖d‖.
    Biases and norms stay. Rows of networks that compute the same at another scale move alike,
    so models before and after a cut can be compared. Afterwards the weights are what they
    were, bit for bit; beside them one copy of the matrices is held.

    Args:
        loss: of a model, e.g. on validation; called once for the model as it is and once a
            sample.
        radius: share of a row's norm; 0.01 … 0.1.

    Returns:
        The mean of loss(w + perturbation) − loss(w); below zero where w is no minimum.

    Raises:
        ValueError: fewer than one sample.
    """
    if samples < 1:
        raise ValueError(f"found {samples} samples, expected at least 1")
    base = loss(model)
    matrices = [parameter.data for parameter in model.parameters() if parameter.dim() > 1]
    saved = [matrix.clone() for matrix in matrices]
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    try:
        for _ in range(samples):
            for matrix, original in zip(matrices, saved, strict=True):
                matrix.copy_(original)
                _perturb(matrix, radius, generator)
            total += loss(model) - base
    finally:
        for matrix, original in zip(matrices, saved, strict=True):
            matrix.copy_(original)
    return total / samples


def _perturb(matrix: torch.Tensor, radius: float, generator: torch.Generator) -> None:
    """Move each row, in place, `CHUNK` weights at a time."""
    rows = matrix.view(matrix.shape[0], -1)
    for part in rows.split(max(CHUNK // rows.shape[1], 1)):
        noise = torch.randn(part.shape, generator=generator).to(part.device, part.dtype)
        lengths = noise.norm(dim=1, keepdim=True).clamp_min(torch.finfo(part.dtype).tiny)
        part += noise * (radius * part.norm(dim=1, keepdim=True) / lengths)


Kept = Sequence[Mapping[str, Any] | None]
"""By layer: ``heads``, ``ffn``, and ``weights``, the share that is not zero; None: it has gone."""
PANELS = {"attention heads": lambda layer: layer["heads"],
          "feed-forward neurons": lambda layer: layer["ffn"],
          "weights not zero, %": lambda layer: round(100 * layer["weights"])}  # fmt: skip


def heat_map(
    rounds: Sequence[Kept],
    full: Sequence[LayerShape],
    path: Path,
    *,
    damage: Mapping[str, Any] | None = None,
) -> None:
    """Draw what each layer has left after each round; the same figures give the same bytes.

    A panel for heads, one for neurons, and one for single weights where any is zero; a row is a
    layer, a column a round, the first column the model before any. Colour is the share of the
    first column, the number what is left.

    Args:
        rounds: what `look` says is kept after each, aligned with `full`.
        full: shapes before the first.
        path: the PNG to write.
        damage: what `draw_curves` draws beneath; none of it where nothing was measured.

    Raises:
        ValueError: a round has more or fewer layers than `full`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    start = [{"heads": len(one.heads), "ffn": one.ffn, "weights": 1.0} for one in full]
    columns: list[Kept] = [start, *rounds]
    if any(len(column) != len(full) for column in columns):
        raise ValueError(f"expected {len(full)} layers in each round, None for one that has gone")
    sparse = any(layer and layer["weights"] < 1 for column in columns for layer in column)
    titles = [*PANELS] if sparse else [*PANELS][:2]
    width, height = 1.9 + len(titles) * 0.62 * max(len(columns), 3), 1.5 + 0.34 * max(len(full), 4)
    size = (max(width, CURVES[0]), height + CURVES[1]) if damage else (width, height)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    upper: Any = figure
    if damage:
        parts: Any = figure.subfigures(2, 1, height_ratios=[height, CURVES[1]])
        upper = parts[0]
        draw_curves(parts[1], damage)
    axes = upper.subplots(1, len(titles), sharey=True)
    for panel, title in zip(axes, titles, strict=True):
        left = [[None if one is None else PANELS[title](one) for one in c] for c in columns]
        image = _panel(panel, left, title)
    axes[0].set_ylabel("layer", color=INK)
    bar = upper.colorbar(image, ax=axes, label="share kept", fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # without the version in the file, the same figures give the same bytes
    figure.savefig(path, format="png", metadata={"Software": None})


def _panel(axes: Any, columns: Sequence[Sequence[int | None]], title: str) -> Any:
    """One kind of unit: a cell a layer and round, with its number; returns the image."""
    import numpy as np

    full = columns[0]
    shares = np.ma.masked_all((len(full), len(columns)))
    for row, column, count in _cells(columns):
        if count is not None:
            shares[row, column] = count / max(full[row] or 0, 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_facecolor(DROPPED)
    for row, column, count in _cells(columns):
        dark = count is not None and float(shares[row, column]) >= DARK_FROM
        axes.text(
            column, row, "–" if count is None else str(count), ha="center", va="center",
            fontsize=8, color="white" if dark else INK,
        )  # fmt: skip
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xticks(range(len(columns)), ["start", *map(str, range(1, len(columns)))], fontsize=8)
    axes.set_yticks(range(len(full)), [str(layer) for layer in range(len(full))], fontsize=8)
    axes.set_xlabel("round", color=INK)
    axes.tick_params(length=0, colors=MUTED)
    axes.spines[:].set_visible(False)
    axes.set_xticks([x - 0.5 for x in range(1, len(columns))], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, len(full))], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    return image


def _cells(columns: Sequence[Sequence[int | None]]) -> Iterator[tuple[int, int, int | None]]:
    for column, counts in enumerate(columns):
        for row, count in enumerate(counts):
            yield row, column, count
