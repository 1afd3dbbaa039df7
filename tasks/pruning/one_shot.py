"""Single weights set to zero in one shot, with calibration texts and no training.

Both methods go through the layers in order. The inputs of a layer's matrices come from the
layers before it as they were left, in one pass over the texts that ends at that layer; only
sums over the texts are kept, and those of one layer at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from scipy.linalg import lapack
from torch import nn

from tasks.errors import DataError
from tasks.modeling.architecture import layers_of
from tasks.pruning.sparsity import (
    Pattern,
    check_pattern,
    matrices,
    shared_out,
    shares,
    two_of_four,
)

Batch = Sequence[torch.Tensor]
"""Ids and mask ``[batch, length]``; what follows them is not read."""
Batches = Callable[[], Iterable[Batch]]
"""Starts a pass over the same calibration texts; called once a layer."""
Sums = dict[nn.Linear, torch.Tensor]
"""Of one layer's matrices: a statistic of their inputs, over all tokens."""
Statistic = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Adds that of a matrix's inputs ``[real tokens, inputs]`` in one batch to the sum so far."""


@torch.no_grad()
def wanda(
    model: nn.Module, batches: Batches, *, target: float, pattern: Pattern
) -> dict[str, float]:
    """Prune every matrix of the transformer layers by `wanda_mask`, in place.

    Sun et al. (2023), algorithm 1; what stays keeps its value.

    Returns:
        Share of zeros of each matrix, by its name in the model.

    Raises:
        ParamsError: the pattern does not allow the target or does not fit a matrix.
        DataError: there is no token to calibrate on.
    """

    def prune(module: nn.Linear, sums: Sums) -> None:
        norms = sums.pop(module).sqrt()
        keep = wanda_mask(module.weight, norms, target=target, pattern=pattern)
        module.weight.masked_fill_(~keep, 0.0)

    check_pattern(matrices(model), target, pattern)
    _layer_by_layer(model, batches, _squares, prune)
    return shares(model)


@torch.no_grad()
def sparsegpt(
    model: nn.Module,
    batches: Batches,
    *,
    target: float,
    pattern: Pattern,
    damping: float = 0.01,
    block: int = 128,
) -> dict[str, float]:
    """Prune every matrix of the transformer layers by `sparsegpt_weight`, in place.

    Frantar and Alistarh (2023), algorithm 1; what stays makes up for what goes.

    Args:
        damping: added to the Hessian's diagonal, as a share of the diagonal's mean.
        block: columns whose weights compete and whose errors are passed on together.

    Returns:
        Share of zeros of each matrix, by its name in the model.

    Raises:
        ParamsError: the pattern does not allow the target or does not fit a matrix.
        DataError: there is no token to calibrate on, or a Hessian cannot be inverted.
    """

    def prune(module: nn.Linear, sums: Sums) -> None:
        root = _inverse_root(sums.pop(module), damping)  # and then the Hessian is gone
        pruned = _compensated(module.weight, root, target=target, pattern=pattern, block=block)
        module.weight.copy_(pruned)

    check_pattern(matrices(model), target, pattern)
    _layer_by_layer(model, batches, _hessian, prune)
    return shares(model)


def wanda_mask(
    weight: torch.Tensor, norms: torch.Tensor, *, target: float, pattern: Pattern
) -> torch.Tensor:
    """Keep the weights with the highest ``|W| · ‖X‖₂`` of their output row.

    Sun et al. (2023), eq. 1. Exactly ``round(target * weights)`` go, and the counts of any two
    rows differ by one at most; with ``2of4`` the two lowest of every four consecutive inputs.

    Args:
        weight: ``[outputs, inputs]``.
        norms: L2 norm of each input feature over all tokens, ``[inputs]``.

    Returns:
        The mask; True stays.
    """
    scores = weight.abs() * norms.to(weight.dtype)
    if pattern == "2of4":
        return two_of_four(scores)
    rows, columns = scores.shape
    counts = torch.tensor(shared_out(target, [columns] * rows), device=scores.device)
    goes = torch.arange(columns, device=scores.device) < counts[:, None]
    order = scores.argsort(dim=1, stable=True)
    return torch.ones_like(goes).scatter_(1, order, ~goes)


def sparsegpt_weight(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    *,
    target: float,
    pattern: Pattern,
    damping: float,
    block: int,
) -> torch.Tensor:
    """The pruned matrix whose output on the calibration texts is close to the dense one's.

    Frantar and Alistarh (2023), algorithm 1. Columns are walked from left to right; a weight
    that goes is made up for by the columns right of it, in the way that is best for the
    squared error (Hassibi and Stork 1993). Weights of a block of columns compete at its begin
    by ``w² / d²``, d² being the diagonal of the inverse Hessian of that column and those right
    of it. Exactly ``round(target * weights)`` go, blocks alike; with ``2of4`` two of every four
    consecutive inputs of a row.

    Args:
        weight: ``[outputs, inputs]``.
        hessian: ``2 X Xᵀ`` over all tokens, ``[inputs, inputs]``.

    Returns:
        A new tensor of the weight's type; all arithmetic is in double precision.

    Raises:
        DataError: the damped Hessian cannot be inverted.
    """
    root = _inverse_root(hessian, damping)
    return _compensated(weight, root, target=target, pattern=pattern, block=block)


def _compensated(
    weight: torch.Tensor, root: torch.Tensor, *, target: float, pattern: Pattern, block: int
) -> torch.Tensor:
    """`sparsegpt_weight` with the `_inverse_root` at hand."""
    rows, columns = weight.shape
    pruned = weight.detach().T.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    block += -block % 4  # so that no group of four is split
    starts = range(0, columns, block)
    counts = shared_out(target, [rows * min(block, columns - start) for start in starts])
    for start, count in zip(starts, counts, strict=True):
        end = min(start + block, columns)
        errors = _prune_columns(pruned[start:end], root[start:end, start:end], count, pattern)
        pruned[end:].addmm_(root[start:end, end:].T, errors, alpha=-1.0)
    return pruned.T.to(weight.dtype, memory_format=torch.contiguous_format)


def _prune_columns(
    part: torch.Tensor, root: torch.Tensor, count: int, pattern: Pattern
) -> torch.Tensor:
    """Prune one block of columns in place.

    Args:
        part: the columns, one after the other in memory, ``[block, outputs]``; changed.
        root: the block's rows and columns of `_inverse_root`.

    Returns:
        The errors to pass on to the columns right of the block, ``[block, outputs]``.
    """
    scale, errors = root.diagonal()[:, None], torch.zeros_like(part)
    keep = torch.ones_like(part, dtype=torch.bool)
    if pattern == "unstructured":
        order = (part / scale).square().flatten().argsort(stable=True)
        keep.view(-1)[order[:count]] = False
    for column in range(len(part)):
        if pattern == "2of4" and column % 4 == 0:
            four = slice(column, column + 4)
            keep[four] = two_of_four((part[four] / scale[four]).square().T).T
        errors[column] = (part[column] / scale[column]).masked_fill(keep[column], 0.0)
        part[column:].addr_(root[column, column:], errors[column], alpha=-1.0)
    part.masked_fill_(~keep, 0.0)  # zero but for rounding so far
    return errors


def _inverse_root(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper triangular R with ``Rᵀ R = (H + damping · mean(diag H) · I)⁻¹``.

    It is the transposed Cholesky factor of the inverse, which LAPACK makes in the place of a
    copy in double precision: beside the Hessian no second such matrix is held.
    """
    damped = hessian.to("cpu", torch.float64, copy=True, memory_format=torch.contiguous_format)
    damped.diagonal().add_(damping * damped.diagonal().mean())
    by_columns = damped.numpy().T  # the same matrix, in the order that LAPACK works in
    _, failed = lapack.dpotrf(by_columns, lower=1, overwrite_a=1)
    if failed:
        raise DataError(
            f"prune.calibration_samples: the Hessian of {len(hessian)} inputs cannot be inverted "
            "at these texts, expected more of them",
            next_command="stillroom compress --set prune.calibration_samples=1024",
        )
    lapack.dpotri(by_columns, lower=1, overwrite_c=1)
    lapack.dpotrf(by_columns, lower=1, overwrite_a=1, clean=1)
    return damped.to(hessian.device)


def _squares(inputs: torch.Tensor, total: torch.Tensor | None) -> torch.Tensor:
    """What Wanda sums over the tokens: the square of each feature, in double precision."""
    parts = inputs.split(256, dim=1)  # a copy in double precision of all would be large
    found = torch.cat([part.double().square().sum(dim=0) for part in parts])
    return found if total is None else total.add_(found)


def _hessian(inputs: torch.Tensor, total: torch.Tensor | None) -> torch.Tensor:
    """What SparseGPT sums over the tokens: ``2 X Xᵀ``, X being ``[inputs, tokens]``."""
    width = inputs.shape[1]
    total = inputs.new_zeros(width, width) if total is None else total
    return total.addmm_(inputs.T, inputs, alpha=2.0)


class _LayerDone(Exception):
    """Ends a forward pass once the layer in question has run."""


def _layer_by_layer(
    model: nn.Module,
    batches: Batches,
    statistic: Statistic,
    prune: Callable[[nn.Linear, Sums], None],
) -> None:
    """Sum a statistic of the inputs of each layer's matrices, prune them, go to the next layer.

    Args:
        prune: takes its matrix's sum out of them.
    """
    training = model.training
    model.eval()
    try:
        for layer in layers_of(model):
            sums = _input_sums(model, layer, batches(), statistic)
            for module in list(sums):
                prune(module, sums)
    finally:
        model.train(training)


def _input_sums(
    model: nn.Module,
    layer: nn.Module,
    batches: Iterable[Batch],
    statistic: Statistic,
) -> Sums:
    sums: Sums = {}
    real = torch.empty(0)

    def add(module: Any, args: tuple[Any, ...]) -> None:
        sums[module] = statistic(args[0][real], sums.get(module))

    def stop(*_: Any) -> None:
        raise _LayerDone

    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(add) for module in linears]
    handles.append(layer.register_forward_hook(stop))
    device = linears[0].weight.device
    try:
        for ids, mask, *_ in batches:
            ids, mask = ids.to(device), mask.to(device)
            if not (real := mask.bool()).any():
                continue
            with contextlib.suppress(_LayerDone):
                model(input_ids=ids, attention_mask=mask)
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise DataError(
            "prune.calibration_samples: found no token to calibrate on, expected training texts",
            next_command="stillroom compress --set prune.calibration_samples=1024",
        )
    return sums
