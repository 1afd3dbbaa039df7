"""What a round of pruning has left, and how firmly it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer
from torch import nn

from tasks.evaluation.quality import quality
from tasks.modeling.checkpoint import parameters
from tasks.modeling.surgery import LayerShape, shapes_of
from tasks.paths import METRICS
from tasks.problems.classification import Split, logits_of
from tasks.pruning.sparsity import left_by_layer, sparsity_of
from tasks.pruning.watch import heat_map, sharpness
from tasks.stage import say, write_history
from tasks.training.trainer import Trained

HEAT_MAP = METRICS / "prune.png"
RADIUS, SAMPLES = 0.05, 3
"""Of the perturbations that sharpness is measured with."""


@dataclass
class Watch:
    """Looks at what each round has left, and shows it before anything else is done to it."""

    tokenizer: Tokenizer
    validation: Split
    full: Sequence[LayerShape]
    """Before the first round."""
    seed: int
    before: dict[str, float] = field(default_factory=dict)
    """Loss, accuracy and sharpness before the first round."""
    damage: Mapping[str, Any] | None = None
    """Curves of sensitivity, once they are measured."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """What `look` has found."""

    def begin(self, model: nn.Module) -> Trained:
        """The model before any cut, which each round is to be compared with."""
        found = look(model, self.tokenizer, self.validation, range(len(self.full)),
                     full=len(self.full), number=0, seed=self.seed)  # fmt: skip
        self.before = {name: found[name] for name in ("loss", "accuracy", "sharpness")}
        say(
            f"prune: before any cut: accuracy {found['accuracy']:.4f}, "
            f"sharpness {found['sharpness']:.3f}"
        )
        return Trained(0, 0, [point(found, [])])

    def see(self, model: nn.Module, layers: Sequence[int], before: Trained) -> Trained:
        """A round more, and the stage's curve with it."""
        found = look(model, self.tokenizer, self.validation, layers, full=len(self.full),
                     number=len(self.rounds) + 1, seed=self.seed)  # fmt: skip
        self.rounds.append(found)
        trained = Trained(before.steps, 0, [*before.curve, point(found, before.curve)])
        kept = [one["kept"] for one in self.rounds]
        heat_map(kept, self.full, HEAT_MAP, damage=self.damage)
        write_history("prune", trained.curve)
        say(
            f"prune: round {len(self.rounds)}: {parameters(model) / 1e6:.2f} M parameters, "
            f"{sparsity_of(model):.0%} zeros, accuracy {found['accuracy']:.4f}, "
            f"sharpness {found['sharpness']:.3f}"
        )
        return trained


def look(
    model: nn.Module,
    tokenizer: Tokenizer,
    validation: Split,
    layers: Sequence[int],
    *,
    full: int,
    number: int,
    seed: int,
) -> dict[str, Any]:
    """Loss and accuracy on validation, the loss's sharpness, and what each layer has left.

    Args:
        layers: those that are left, as they were counted before the first round.
        full: how many there were.
        number: of the round, from 1; 0 before the first.

    Returns:
        Beside those figures ``kept``, by layer before the first round, None for one that has
        gone: heads, neurons, and the share of single weights that are not zero.
    """

    def loss(changed: nn.Module) -> float:
        answers = logits_of(changed, tokenizer, validation.texts)
        return quality(answers, validation.labels)["nll"]

    measured = quality(logits_of(model, tokenizer, validation.texts), validation.labels)
    kept: list[dict[str, Any] | None] = [None] * full
    weights = left_by_layer(model)
    for layer, shape, share in zip(layers, shapes_of(model), weights, strict=True):
        kept[layer] = {"heads": len(shape.heads), "ffn": shape.ffn, "weights": share}
    return {
        "round": number,
        "loss": measured["nll"],
        "accuracy": measured["accuracy"],
        "sharpness": sharpness(model, loss, radius=RADIUS, samples=SAMPLES, seed=seed),
        "kept": kept,
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
