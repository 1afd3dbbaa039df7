"""Lottery tickets: which weights matter is learned late, and trained again from early values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from transformers import TrainerCallback

from tasks.errors import DataError
from tasks.pruning.sparsity import (
    KeepZeros,
    Pattern,
    Scope,
    apply_masks,
    check_pattern,
    magnitude_masks,
    matrices,
    sparsity_of,
)

Train = Callable[[nn.Module, Sequence[TrainerCallback]], None]
"""Trains a model in place and tells the callbacks of every step."""


def lottery(
    model: nn.Module,
    early_state: Mapping[str, torch.Tensor],
    *,
    train: Train,
    target: float,
    rounds: int,
    scope: Scope,
    pattern: Pattern,
) -> list[float]:
    """Train, cut the smallest weights, rewind what is left, as often as asked; then train.

    Iterative magnitude pruning of Frankle and Carbin (2019, section 2), rewound to an early
    checkpoint as Frankle et al. (2020, algorithm 1) do where initial values are too early. It
    begins from the early state, whatever the model holds. Zeros are the masks' only record:
    besides the model and the early state one mask is held at a time.

    Args:
        early_state: values of the whole model from early in its training, `model.state_dict()`
            copied; everything that is not pruned goes back to it, too.
        train: called ``rounds + 1`` times, each time with the callback that keeps zeros.
        target: share of zeros after the last round; see `ticket_sparsity` for the others.

    Returns:
        Share of zeros after each round.

    Raises:
        ParamsError: the pattern does not allow the target or does not fit a matrix.
        DataError: the early state is that of a model of another shape.
    """
    check_pattern(matrices(model), target, pattern)
    _check_state(model, early_state)
    model.load_state_dict(early_state)
    reached = []
    for number in range(1, rounds + 1):
        train(model, [KeepZeros()])
        sparsity = ticket_sparsity(number, rounds, target)
        masks = magnitude_masks(matrices(model), sparsity, scope=scope, pattern=pattern)
        model.load_state_dict(early_state)
        apply_masks(matrices(model), masks)
        del masks
        reached.append(sparsity_of(model))
    train(model, [KeepZeros()])
    return reached


def ticket_sparsity(number: int, rounds: int, target: float) -> float:
    """Sparsity after a round, from 1: each keeps the same share of what the one before left.

    Frankle and Carbin (2019), section 2: ``p^(1/n)`` of the surviving weights go in each of n
    rounds, read as the share that stays.
    """
    return target if number == rounds else 1.0 - (1.0 - target) ** (number / rounds)


def _check_state(model: nn.Module, early: Mapping[str, torch.Tensor]) -> None:
    now = model.state_dict()
    for name in sorted(set(now) | set(early)):
        found = tuple(early[name].shape) if name in early else "nothing"
        expected = tuple(now[name].shape) if name in now else "nothing"
        if found != expected:
            raise DataError(
                f"distill.early: the early copy has {found} at {name}, expected {expected}: it "
                "must be cut as the model is",
                next_command="stillroom compress --set prune.sparsity.method=magnitude",
            )
        if early[name].data_ptr() == now[name].data_ptr():
            raise ValueError(f"early_state shares {name} with the model: copy it first")
