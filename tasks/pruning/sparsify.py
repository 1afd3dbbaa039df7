"""Set single weights to zero, by the method that params name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import TrainerCallback

from tasks.modeling.checkpoint import load_checkpoint
from tasks.modeling.surgery import factorise_embeddings, keep_layers
from tasks.paths import EARLY
from tasks.pruning.calibration import Calibration
from tasks.pruning.lottery import lottery
from tasks.pruning.one_shot import sparsegpt, wanda
from tasks.pruning.sparsity import GradualMagnitude, shares, sparsity_of
from tasks.pruning.width import WidthPlan, apply
from tasks.schema import Sparsity

Train = Callable[[nn.Module, Sequence[TrainerCallback], str], None]
"""Trains a model in place; callbacks of `transformers`, and a name for the run."""


@dataclass(frozen=True)
class Sparse:
    """Share of zeros over all matrices of the layers, and of each."""

    share: float
    matrices: dict[str, float]


def sparsify(
    student: nn.Module,
    config: Sparsity,
    calibration: Calibration,
    *,
    train: Train,
    look: Callable[[], None],
    dense: Path,
    layers: Sequence[int],
    rank: int,
    plans: Sequence[WidthPlan],
) -> Sparse:
    """Make the student sparse in place.

    Args:
        train: looks at what it has trained.
        look: at the student, where nothing trains it after the cut.
        dense: the checkpoint that pruning began with; an early copy lies beside it.
        layers, rank, plans: what was cut since, in this order, so that the early copy of a
            lottery ticket can be cut alike.
    """
    target, pattern, scope = config.target, config.pattern, config.scope
    if config.method == "none":
        return Sparse(0.0, {})
    if config.method == "wanda":
        wanda(student, calibration.batches, target=target, pattern=pattern)
        look()
    elif config.method == "sparsegpt":
        sparsegpt(student, calibration.batches, target=target, pattern=pattern)
        look()
    elif config.method == "magnitude":
        train(student, [GradualMagnitude(target, scope=scope, pattern=pattern)], "sparsity")
    else:
        tickets = iter(range(1, config.rounds + 2))
        lottery(
            student,
            _early(dense, layers, rank, plans),
            train=lambda model, callbacks: train(model, callbacks, f"ticket {next(tickets)}"),
            target=target,
            rounds=config.rounds,
            scope=scope,
            pattern=pattern,
        )
    return Sparse(sparsity_of(student), shares(student))


def _early(
    dense: Path, layers: Sequence[int], rank: int, plans: Sequence[WidthPlan]
) -> dict[str, torch.Tensor]:
    """The weights from early in distillation, cut as the student has been since."""
    model = load_checkpoint(dense, weights=EARLY)
    keep_layers(model, layers)
    if rank:
        factorise_embeddings(model, rank)
    for plan in plans:
        apply(plan, model)
    return model.state_dict()
