"""What each layer's heads and neurons are worth: one curve of damage per layer and kind.

Whole layers and channels are measured beside them; no budget is planned over those two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.isotonic import isotonic_regression
from torch import nn

from tasks.errors import DataError
from tasks.modeling.architecture import architecture_of, layers_of, linear
from tasks.modeling.checkpoint import twin
from tasks.modeling.surgery import keep_channels
from tasks.pruning.importance import LayerScores
from tasks.pruning.width import CHANNEL_BLOCK, keep_best

Kind = Literal["heads", "neurons"]
Points = tuple[tuple[int, float], ...]
KINDS: tuple[Kind, ...] = ("heads", "neurons")
NEURON_BLOCK = 32
"""Neurons are kept in multiples of this, which kernels like."""


@dataclass(frozen=True)
class Curve:
    """Damage of keeping so many units of one kind in one layer while the rest stays whole.

    Both tuples hold (units kept, rise of the loss), ascending in units, and end with all
    units and no damage.
    """

    layer: int
    kind: Kind
    points: Points
    """Never negative and never rising with more units: what plans are made from."""
    raw: Points
    """As measured, for the report."""

    def damage(self, kept: int) -> float:
        """Between two points on the straight line; below the first point its own damage."""
        units, damages = zip(*self.points, strict=True)
        return float(np.interp(kept, units, damages))


def sensitivity(
    model: nn.Module,
    scores: Sequence[LayerScores],
    evaluate: Callable[[nn.Module], float],
    *,
    shares: Sequence[float] = (0.75, 0.5, 0.25, 0.125),
    say: Callable[[str], None] = lambda _: None,
) -> list[Curve]:
    """Cut each layer alone, one kind of unit at a time, and measure what it does to the loss.

    A unit is cut by setting its outgoing weights to zero, which gives the logits of the sliced
    model; afterwards the weights are what they were, bit for bit. Beyond the model this holds
    a copy of one matrix.

    Args:
        scores: saliency by layer (`ModelScores.layers`); the lowest-scored units go first.
        evaluate: loss of a model, e.g. `divergence` from the uncut one's logits. It is called
            once for the uncut model, and its value there is no damage.
        shares: of the units that stay. To them comes the least that a plan may keep: one head,
            `NEURON_BLOCK` neurons.
        say: told the curve of each layer as it is done.

    Returns:
        For each layer the curve of its heads, then that of its neurons.

    Raises:
        DataError: a loss is NaN or infinite.
    """
    arch = architecture_of(model)
    base = _finite(evaluate(model), "the uncut model")
    curves = []
    for index, (layer, score) in enumerate(zip(layers_of(model), scores, strict=True)):
        outgoing = {"heads": arch.attention_output, "neurons": arch.ffn_out}
        for kind in KINDS:
            units: torch.Tensor = getattr(score, kind)
            weight = linear(layer, outgoing[kind]).weight
            raw = []
            for count in _counts(kind, len(units), shares):
                with silenced(weight, units, keep_best(units, count)):
                    loss = evaluate(model)
                where = f"layer {index} with {count} of {len(units)} {kind}"
                raw.append((count, _finite(loss, where) - base))
            curves.append(curve(index, kind, [*raw, (len(units), 0.0)]))
            shown = ", ".join(f"{count}: {damage:.3g}" for count, damage in raw)
            say(f"sensitivity: layer {index}, {kind} kept: damage {{{shown}}}")
    return curves


def passed_over(model: nn.Module, evaluate: Callable[[nn.Module], float]) -> list[float]:
    """Rise of the loss with each layer alone left out, as measured: it hands on what it is given.

    Raises:
        DataError: a loss is NaN or infinite.
    """
    base = _finite(evaluate(model), "the uncut model")
    found = []
    for index, layer in enumerate(layers_of(model)):
        handle = layer.register_forward_hook(_hand_on)
        try:
            found.append(_finite(evaluate(model), f"the model without layer {index}") - base)
        finally:
            handle.remove()
    return found


def _hand_on(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
    """A layer's output with the hidden state that came in."""
    return (args[0], *out[1:]) if isinstance(out, tuple) else args[0]


def narrowed(
    model: nn.Module,
    scores: torch.Tensor,
    evaluate: Callable[[nn.Module], float],
    *,
    shares: Sequence[float] = (0.875, 0.75, 0.5, 0.25),
) -> Points:
    """Rise of the loss with fewer channels everywhere, by how many are kept, as measured.

    Norms take their statistics over the channels that are left, so no zeros stand for a cut: the
    lowest-scored channels are sliced off, beside the model, which is left as it was.

    Args:
        scores: saliency of the channels (`ModelScores.channels`).
        shares: of the channels that stay, rounded to `CHANNEL_BLOCK`.

    Raises:
        DataError: a loss is NaN or infinite.
    """
    base, whole = _finite(evaluate(model), "the uncut model"), len(scores)
    counts = {max(round(whole * share / CHANNEL_BLOCK), 1) * CHANNEL_BLOCK for share in shares}
    found = [(whole, 0.0)]
    for count in sorted((c for c in counts if c < whole), reverse=True):
        cut = twin(model)
        keep_channels(cut, keep_best(scores, count))
        found.append((count, _finite(evaluate(cut), f"{count} of {whole} channels") - base))
        del cut
    return tuple(reversed(found))


def curve(layer: int, kind: Kind, raw: Sequence[tuple[int, float]]) -> Curve:
    """A curve from measured points, the nearest one in squares that never rises."""
    ordered = sorted(raw)
    floored = [max(damage, 0.0) for _, damage in ordered]
    falling = isotonic_regression(floored, increasing=False)
    points = tuple((kept, float(d)) for (kept, _), d in zip(ordered, falling, strict=True))
    return Curve(layer, kind, points, tuple(ordered))


def smallest(kind: Kind, units: int) -> int:
    """The least that a plan keeps of so many units."""
    return min(1 if kind == "heads" else NEURON_BLOCK, units)


@torch.inference_mode()
def divergence(
    model: nn.Module,
    reference: np.ndarray,
    batches: Iterable[tuple[np.ndarray, torch.Tensor, torch.Tensor]],
) -> float:
    """Mean Kullback–Leibler divergence of the model's answers from a reference, in nats a text.

    KL(p ‖ q) = Σ p·(log p − log q), p the reference's softmax and q the model's: what the
    distillation loss measures at temperature 1 (Hinton et al. 2015).

    Args:
        reference: logits ``[texts, classes]``.
        batches: positions in the reference, ids and mask ``[batch, length]``.
    """
    model.eval()
    device = next(model.parameters()).device
    total, texts = 0.0, 0
    for where, ids, mask in batches:
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        found = logits.double().cpu().log_softmax(dim=-1)
        expected = torch.from_numpy(reference[where]).double().log_softmax(dim=-1)
        total += float((expected.exp() * (expected - found)).sum())
        texts += len(where)
    return total / max(texts, 1)


@contextmanager
def silenced(weight: torch.Tensor, units: torch.Tensor, keep: Sequence[int]) -> Iterator[None]:
    """Within, the columns of ``weight`` that belong to all other units are zero."""
    gone = torch.ones(len(units), dtype=torch.bool)
    gone[list(keep)] = False
    columns = gone.repeat_interleave(weight.shape[1] // len(units)).to(weight.device)
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[:, columns] = 0
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


def _counts(kind: Kind, units: int, shares: Sequence[float]) -> list[int]:
    """Units to keep, ascending, without all of them, which is no cut."""
    least = smallest(kind, units)
    return sorted({least, *(max(round(units * share), least) for share in shares)} - {units})


def _finite(loss: float, where: str) -> float:
    if not math.isfinite(loss):
        raise DataError(
            f"prune.sensitivity: found a loss of {loss} for {where}, expected a finite number",
            next_command="dvc repro --force distill",
        )
    return loss
