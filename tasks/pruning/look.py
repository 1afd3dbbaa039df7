"""What a round of pruning has left, and how firmly it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer
from torch import nn

from tasks.evaluation.quality import quality
from tasks.modeling.surgery import LayerShape
from tasks.problems.classification import Split, logits_of
from tasks.pruning.watch import sharpness

RADIUS, SAMPLES = 0.05, 3
"""Of the perturbations that sharpness is measured with."""


def look(
    model: nn.Module,
    tokenizer: Tokenizer,
    validation: Split,
    shapes: Sequence[LayerShape | None],
    *,
    number: int,
    seed: int,
) -> dict[str, Any]:
    """Loss and accuracy on validation, the loss's sharpness, and what each layer has left.

    Args:
        shapes: by layer before the first round, None for one that has gone.
        number: of the round, from 1.
    """

    def loss(changed: nn.Module) -> float:
        answers = logits_of(changed, tokenizer, validation.texts)
        return quality(answers, validation.labels)["nll"]

    measured = quality(logits_of(model, tokenizer, validation.texts), validation.labels)
    return {
        "round": number,
        "loss": measured["nll"],
        "accuracy": measured["accuracy"],
        "sharpness": sharpness(model, loss, radius=RADIUS, samples=SAMPLES, seed=seed),
        "kept": [
            None if shape is None else {"heads": len(shape.heads), "ffn": shape.ffn}
            for shape in shapes
        ],
        "shapes": list(shapes),
    }


def point(seen: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A round as the next point of the stage's curve."""
    return {
        "step": curve[-1]["step"] + 1 if curve else 0,
        "eval_loss": seen["loss"],
        "eval_accuracy": seen["accuracy"],
        "sharpness": seen["sharpness"],
        "round": seen["round"],
    }
