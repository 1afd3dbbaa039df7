"""The curves that sensitivity measured, beside the map of what each layer has left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

INK, MUTED = "#1f2933", "#7b8794"
LEAST = 1e-5
"""Nats; less is drawn as this, on a scale that has no zero."""
KINDS = {"heads": "attention heads of one layer", "neurons": "feed-forward neurons of one layer"}


def draw_curves(figure: Any, found: Mapping[str, Any]) -> None:
    """Draw the divergence from the uncut model, in nats, over what is kept.

    One panel for heads and one for neurons, a line a layer; one for the channels of all layers
    together; one with a bar a layer, for the whole of it left out.

    Args:
        figure: of Matplotlib, or a part of one.
        found: ``sensitivity``, ``sensitivity_channels`` and ``sensitivity_layers``, as
            ``metrics/prune.json`` has them.
    """
    import matplotlib

    panels = figure.subplots(1, 4, sharey=True)
    layers = found["sensitivity_layers"]
    colours = matplotlib.colormaps["viridis"].resampled(max(len(layers), 2))
    for panel, (kind, title) in zip(panels, KINDS.items(), strict=False):
        for one in found["sensitivity"]:
            if one["kind"] == kind:
                _line(panel, one["raw"], colours(one["layer"]), f"layer {one['layer']}")
        panel.set_title(title, fontsize=9, color=INK)
    panels[0].legend(fontsize=7, frameon=False, ncols=1 + len(layers) // 7)
    _line(panels[2], found["sensitivity_channels"], INK, "all layers")
    panels[2].set_title("channels of all layers", fontsize=9, color=INK)
    for panel in panels[:3]:
        panel.set_xlabel("kept, %", color=INK)
    panels[3].bar(range(len(layers)), [max(damage, LEAST) for damage in layers],
                  color=[colours(index) for index in range(len(layers))])  # fmt: skip
    panels[3].set_title("one layer left out", fontsize=9, color=INK)
    panels[3].set_xlabel("layer", color=INK)
    panels[3].set_xticks(range(len(layers)))
    panels[0].set_yscale("log")
    panels[0].set_ylabel("divergence, nats", color=INK)
    for panel in panels:
        panel.tick_params(labelsize=8, colors=MUTED)
        panel.spines[["top", "right"]].set_visible(False)


def _line(axes: Any, points: Sequence[Sequence[float]], colour: Any, label: str) -> None:
    """Damage over the share of the units that is kept; the last point is the uncut model's."""
    whole = points[-1][0]
    shares = [100 * kept / whole for kept, _ in points[:-1]]
    damages = [max(damage, LEAST) for _, damage in points[:-1]]
    axes.plot(shares, damages, marker="o", markersize=3, color=colour, label=label)
