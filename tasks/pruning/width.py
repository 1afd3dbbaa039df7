"""Which heads and neurons go: a plan that is data, and its application."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tasks.modeling.surgery import keep_heads, keep_neurons
from tasks.pruning.importance import LayerScores


@dataclass(frozen=True)
class LayerPlan:
    """Positions of the heads and neurons of one layer that stay, ascending."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]


def plan_width(
    scores: Sequence[LayerScores],
    *,
    heads_keep: float,
    ffn_keep: float,
    scope: str,
    multiple: int = 32,
) -> list[LayerPlan]:
    """Keep the highest-scored shares of heads and neurons.

    Args:
        scope: ``layer`` cuts all layers alike; ``global`` ranks units of all layers together.
        multiple: neurons kept in a layer are rounded to this, which kernels like; every layer
            keeps at least this many neurons (or all it has) and one head.
    """
    heads = _counts([s.heads for s in scores], heads_keep, scope, multiple=1)
    neurons = _counts([s.neurons for s in scores], ffn_keep, scope, multiple=multiple)
    return [
        LayerPlan(heads=_top(s.heads, h), neurons=_top(s.neurons, n))
        for s, h, n in zip(scores, heads, neurons, strict=True)
    ]


def apply(plan: Sequence[LayerPlan], model: nn.Module) -> nn.Module:
    """Cut the model in place."""
    for index, layer in enumerate(plan):
        keep_heads(model, index, layer.heads)
        keep_neurons(model, index, layer.neurons)
    return model


def _counts(
    scores: Sequence[torch.Tensor], share: float, scope: str, *, multiple: int
) -> list[int]:
    """How many units each layer keeps."""
    if scope == "layer":
        wanted = [len(s) * share for s in scores]
    else:
        ranked = torch.cat(list(scores)).sort(descending=True).values
        threshold = ranked[max(round(len(ranked) * share), 1) - 1]
        wanted = [float((s >= threshold).sum()) for s in scores]
    return [
        min(max(round(w / multiple) * multiple, multiple), len(s))
        for w, s in zip(wanted, scores, strict=True)
    ]


def _top(scores: torch.Tensor, count: int) -> tuple[int, ...]:
    """Positions of the `count` highest scores, ascending."""
    best = torch.argsort(scores, descending=True, stable=True)[:count]
    return tuple(sorted(best.tolist()))
