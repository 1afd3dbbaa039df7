"""Which heads, neurons and channels go: a plan that is data, and its application."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tasks.modeling.surgery import keep_channels, keep_heads, keep_neurons
from tasks.pruning.importance import ModelScores

CHANNEL_BLOCK = 8
"""Channels are kept in multiples of this. Measured on ONNX Runtime's int8 kernels: other counts
than multiples of four cost as much as the next one up, and eight is no slower than four."""


@dataclass(frozen=True)
class LayerPlan:
    """Positions of the heads and neurons of one layer that stay, ascending."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]


@dataclass(frozen=True)
class WidthPlan:
    """What stays of each layer, and of the hidden state."""

    layers: list[LayerPlan]
    channels: tuple[int, ...] | None
    """Positions of the channels that stay, ascending; None: all."""


@dataclass(frozen=True)
class UnitCounts:
    """How many units a model has; heads and neurons by layer."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    channels: int


def plan_width(
    scores: ModelScores,
    *,
    heads_keep: float,
    ffn_keep: float,
    hidden_keep: float = 1.0,
    scope: str,
    multiple: int = 32,
    original: UnitCounts | None = None,
) -> WidthPlan:
    """Keep the highest-scored shares of heads, neurons and channels.

    Args:
        hidden_keep: channels kept are rounded to `CHANNEL_BLOCK`, and at least as many stay.
        scope: ``layer`` cuts all layers alike; ``global`` ranks units of all layers together.
        multiple: neurons kept in a layer are rounded to this, which kernels like; every layer
            keeps at least this many neurons (or all it has) and one head.
        original: what the model had before the first of several rounds (`unit_counts` of that
            round's scores, without the layers that are gone). Shares are of this instead of
            what there is now, so that roundings do not add up: see `share_left`.
    """
    had = original or unit_counts(scores)
    heads = [s.heads for s in scores.layers]
    neurons = [s.neurons for s in scores.layers]
    head_counts = _counts(heads, had.heads, heads_keep, scope, multiple=1)
    neuron_counts = _counts(neurons, had.neurons, ffn_keep, scope, multiple=multiple)
    layers = [
        LayerPlan(heads=keep_best(s.heads, h), neurons=keep_best(s.neurons, n))
        for s, h, n in zip(scores.layers, head_counts, neuron_counts, strict=True)
    ]
    if hidden_keep == 1:
        return WidthPlan(layers, channels=None)
    [count] = _counts(
        [scores.channels], [had.channels], hidden_keep, "layer", multiple=CHANNEL_BLOCK
    )
    return WidthPlan(layers, channels=keep_best(scores.channels, count))


def plan_counts(
    scores: ModelScores,
    original: UnitCounts,
    goal: Sequence[tuple[int, int]],
    round: int,
    rounds: int,
) -> WidthPlan:
    """Keep the highest-scored units on the way to counts of heads and neurons for each layer.

    Args:
        original: what the model had before the first round.
        goal: heads and neurons of each layer after the last.
    """
    layers = []
    for s, had_heads, had_neurons, (heads, neurons) in zip(
        scores.layers, original.heads, original.neurons, goal, strict=True
    ):
        left = [
            math.ceil(had * share_left(wanted / had, round, rounds) - 1e-9)
            for had, wanted in ((had_heads, heads), (had_neurons, neurons))
        ]
        layers.append(LayerPlan(keep_best(s.heads, left[0]), keep_best(s.neurons, left[1])))
    return WidthPlan(layers, channels=None)


def apply(plan: WidthPlan | Sequence[LayerPlan], model: nn.Module) -> nn.Module:
    """Cut the model in place; a plan of layers alone leaves all channels."""
    layers, channels = (plan.layers, plan.channels) if isinstance(plan, WidthPlan) else (plan, None)
    for index, layer in enumerate(layers):
        keep_heads(model, index, layer.heads)
        keep_neurons(model, index, layer.neurons)
    if channels is not None:
        keep_channels(model, channels)
    return model


def unit_counts(scores: ModelScores) -> UnitCounts:
    """How many units the model has that was scored."""
    return UnitCounts(
        heads=tuple(len(s.heads) for s in scores.layers),
        neurons=tuple(len(s.neurons) for s in scores.layers),
        channels=len(scores.channels),
    )


def share_left(keep: float, round: int, rounds: int) -> float:
    """Share of the original that is left after a round, counted from 1, in geometric steps.

    Every round keeps the same share of what it finds, and after the last exactly `keep` is left:
    with the original counts given to `plan_width`, as many units as after a single shot.
    """
    return float(keep ** (round / rounds))


def keep_best(scores: torch.Tensor, count: int) -> tuple[int, ...]:
    """Positions of the `count` highest scores, ascending; of equal ones the first."""
    best = torch.argsort(scores, descending=True, stable=True)[:count]
    return tuple(sorted(best.tolist()))


def _counts(
    scores: Sequence[torch.Tensor],
    original: Sequence[int],
    share: float,
    scope: str,
    *,
    multiple: int,
) -> list[int]:
    """How many units each layer keeps."""
    if share == 1:
        return list(original)
    if scope == "layer":
        wanted = [count * share for count in original]
    else:
        owner = torch.arange(len(scores)).repeat_interleave(torch.tensor([len(s) for s in scores]))
        best = keep_best(torch.cat(list(scores)), max(round(sum(original) * share), 1))
        wanted = owner[list(best)].bincount(minlength=len(scores)).tolist()
    return [
        min(max(round(w / multiple) * multiple, multiple), len(s))
        for w, s in zip(wanted, scores, strict=True)
    ]
