"""Single weights set to zero by magnitude, at once or along a schedule; shapes stay.

A mask is a boolean tensor of its matrix's shape ``[outputs, inputs]``: True stays.
`tasks.pruning.one_shot` chooses with calibration texts instead, `tasks.pruning.lottery` rewinds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers import TrainerCallback

from tasks.errors import ParamsError
from tasks.modeling.architecture import layers_of

Pattern = Literal["unstructured", "2of4"]
Scope = Literal["global", "layer"]
Matrices = Mapping[str, nn.Linear]
Masks = Mapping[str, torch.Tensor]


def matrices(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear of the transformer layers, by its name in the model.

    Embeddings, pooler and classification head are none of them.
    """
    inside = set(layers_of(model).modules())
    found = model.named_modules()
    return {name: m for name, m in found if isinstance(m, nn.Linear) and m in inside}


def shares(model: nn.Module) -> dict[str, float]:
    """Share of zeros in each of `matrices`."""
    return {name: _zeros(m) / m.weight.numel() for name, m in matrices(model).items()}


def sparsity_of(model: nn.Module) -> float:
    """Share of zeros over all of `matrices`, 0 … 1."""
    chosen = matrices(model).values()
    return sum(map(_zeros, chosen)) / sum(m.weight.numel() for m in chosen)


def left_by_layer(model: nn.Module) -> list[float]:
    """Share of the weights of each layer's matrices that are not zero."""
    found = []
    for layer in layers_of(model):
        linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        zeros = sum(map(_zeros, linears))
        found.append(1.0 - zeros / sum(module.weight.numel() for module in linears))
    return found


def nonzero(chosen: Matrices) -> dict[str, torch.Tensor]:
    """The masks that the weights have now."""
    return {name: m.weight.detach() != 0 for name, m in chosen.items()}


@torch.no_grad()
def apply_masks(chosen: Matrices, masks: Masks) -> None:
    """Set what a mask does not keep to zero, in place."""
    for name, module in chosen.items():
        module.weight.masked_fill_(~masks[name], 0.0)


def check_pattern(chosen: Matrices, target: float, pattern: Pattern) -> None:
    """Refuse what cannot be reached, before anything is touched.

    Raises:
        ParamsError: `target` is outside [0, 1); with ``2of4`` it is not 0.5, or a matrix has a
            number of inputs that four does not divide.
    """
    if not 0 <= target < 1 or (pattern == "2of4" and target != 0.5):
        expected = "0.5 with pattern 2of4" if pattern == "2of4" else "at least 0 and below 1"
        raise ParamsError(
            f"prune.sparsity.target: found {target}, expected {expected}",
            next_command="stillroom compress --set prune.sparsity.target=0.5",
        )
    if pattern == "2of4":
        for name, module in chosen.items():
            _require_fours(module.in_features, name)


def magnitude_masks(
    chosen: Matrices, target: float, *, scope: Scope, pattern: Pattern
) -> dict[str, torch.Tensor]:
    """Keep the weights that are largest in magnitude.

    Exactly ``round(target * weights)`` go, of each matrix or of all together; of equal
    magnitudes the earlier goes first. A zero is smallest of all, so that masks made again from
    masked weights at a higher target are nested. Extra memory: the masks and a few copies of
    one matrix, also when all compete.

    Args:
        scope: ``layer`` cuts every matrix alike; ``global`` ranks all weights together.
        pattern: with ``2of4`` only the two smallest of every four consecutive inputs of an
            output may go (Mishra et al. 2021, section 3); a target below 0.5 takes the smallest
            of those, and 0.5 all of them.

    Raises:
        ParamsError: `target` is outside [0, 1), or above 0.5 with ``2of4``; or a matrix has a
            number of inputs that four does not divide.
    """
    if not 0 <= target < 1 or (pattern == "2of4" and target > 0.5):
        limit = "at most 0.5 with pattern 2of4" if pattern == "2of4" else "below 1"
        raise ParamsError(
            f"prune.sparsity.target: found {target}, expected {limit}",
            next_command="stillroom compress --set prune.sparsity.target=0.5",
        )
    ranked = [list(chosen)] if scope == "global" else [[name] for name in chosen]
    masks: dict[str, torch.Tensor] = {}
    for names in ranked:
        weights = [chosen[name].weight.detach() for name in names]
        count = round(target * sum(w.numel() for w in weights))
        masks.update(zip(names, _without_smallest(weights, count, pattern), strict=True))
    return masks


def two_of_four(scores: torch.Tensor) -> torch.Tensor:
    """Mask of the two highest of every four consecutive inputs; of equals the earlier goes.

    Args:
        scores: ``[outputs, inputs]``.

    Raises:
        ParamsError: four does not divide the number of inputs.
    """
    _require_fours(scores.shape[1], "a matrix")
    groups = scores.reshape(-1, 4)
    beaten = torch.zeros_like(groups, dtype=torch.int8)
    for one, other in itertools.combinations(range(4), 2):  # several times faster than a sort
        lost = groups[:, one] <= groups[:, other]
        beaten[:, one] += lost
        beaten[:, other] += ~lost
    return (beaten < 2).view(scores.shape)


def shared_out(target: float, sizes: Sequence[int]) -> list[int]:
    """How many of each part go, so that ``round(target * all)`` go and the parts are cut alike.

    Each part's count is within one of ``target * size``.
    """
    ends, total = [0], 0
    for size in sizes:
        total += size
        ends.append(round(target * total))
    return [after - before for before, after in itertools.pairwise(ends)]


def cubic_sparsity(
    progress: float, target: float, *, start: float = 0.0, until: float = 0.6
) -> float:
    """Sparsity at a share of training: fast while much is redundant, slow towards the target.

    ``target + (start - target) (1 - progress / until)³``, Zhu and Gupta (2017), eq. 1, begun at
    the first step.

    Args:
        progress: share of the steps done, 0 … 1.
        until: share of the steps by which the target is reached; the rest recovers.
    """
    left = 1.0 - min(max(progress / until, 0.0), 1.0)
    return target + (start - target) * left**3


class KeepZeros(TrainerCallback):
    """Keeps what is zero in `matrices` when training starts at zero after every step.

    A resumed run starts from masked weights, so it needs no record of its own.
    """

    def __init__(self) -> None:
        self._masks: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        masks = nonzero(matrices(kwargs["model"]))
        self._masks = {name: mask for name, mask in masks.items() if not mask.all()}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = matrices(kwargs["model"])
        apply_masks({name: found[name] for name in self._masks}, self._masks)


class GradualMagnitude(TrainerCallback):
    """Iterative magnitude pruning while training, along `cubic_sparsity` (Zhu and Gupta 2017).

    The sparsity follows from the step alone and the masks from the weights, so a run resumed
    from a checkpoint goes on as if it had not been cut off. What is zero stays zero.

    Args:
        target: share of zeros over the masked matrices; 0.5 with ``2of4``.
        until: share of the steps by which the target is reached, in (0, 1].
        every: steps between two masks; the step that reaches the target always makes one.
        start: share of zeros that the first masks are counted from.

    Raises:
        ParamsError: a target that the pattern does not allow; at the end, if training stopped or
            went back to weights from before the target.
    """

    def __init__(
        self,
        target: float,
        *,
        scope: Scope,
        pattern: Pattern,
        until: float = 0.6,
        every: int = 10,
        start: float = 0.0,
    ) -> None:
        check_pattern({}, target, pattern)
        self._target, self._start, self._until, self._every = target, start, until, every
        self._scope: Scope = scope
        self._pattern: Pattern = pattern
        self._masks: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        chosen = matrices(kwargs["model"])
        check_pattern(chosen, self._target, self._pattern)
        self._masks = nonzero(chosen)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        chosen = matrices(kwargs["model"])
        apply_masks(chosen, self._masks)
        done, last = state.global_step + 1, self._last_step(state)  # counted up after this event
        if done <= last and (done % self._every == 0 or done == last):
            wanted = cubic_sparsity(
                done / state.max_steps, self._target, start=self._start, until=self._until
            )
            pattern, scope = self._pattern, self._scope
            masks = magnitude_masks(chosen, wanted, scope=scope, pattern=pattern)
            self._masks = {name: masks[name] & self._masks[name] for name in masks}
            apply_masks(chosen, self._masks)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        dense = any(m.weight[~self._masks[name]].any() for name, m in matrices(model).items())
        if state.global_step < self._last_step(state) or dense:
            raise ParamsError(
                f"prune.training.patience: training ended with {sparsity_of(model):.3f} zeros at "
                f"step {state.global_step} of {state.max_steps}, expected prune.sparsity.target "
                f"{self._target}: early stopping prefers the denser model",
                next_command="stillroom compress --set prune.training.patience=0",
            )

    def _last_step(self, state: Any) -> int:
        return math.ceil(self._until * state.max_steps)


def _zeros(module: nn.Linear) -> int:
    return module.weight.numel() - int(module.weight.count_nonzero())


def _require_fours(inputs: int, name: str) -> None:
    if inputs % 4:
        raise ParamsError(
            f"prune.sparsity.pattern: found 2of4 with {inputs} inputs in {name}, expected a "
            "multiple of 4",
            next_command="stillroom compress --set prune.sparsity.pattern=unstructured",
        )


def _without_smallest(
    weights: Sequence[torch.Tensor], count: int, pattern: Pattern
) -> list[torch.Tensor]:
    """Masks that drop the `count` smallest of all weights together, earlier ones first at ties."""
    if count == 0:
        return [torch.ones_like(w, dtype=torch.bool) for w in weights]
    threshold, ties = _threshold(weights, count, pattern)
    masks = []
    for weight in weights:
        bits = _sortable(weight, pattern)
        keep = bits > threshold
        equal = (bits == threshold).nonzero().flatten()
        keep[equal[ties:]] = True
        ties = max(ties - len(equal), 0)
        masks.append(keep.view(weight.shape))
    return masks


def _threshold(weights: Sequence[torch.Tensor], count: int, pattern: Pattern) -> tuple[int, int]:
    """The `count`-th smallest value as `_sortable` has it, and how many that equal it go.

    Found by counting the upper and then the lower sixteen bits of each value: sorting the
    weights of a whole model would take several times its memory.
    """
    zero = torch.zeros(1 << 16, dtype=torch.int64, device=weights[0].device)
    halves = ((_sortable(w, pattern) >> 16) for w in weights)
    first, below = _bucket(sum((torch.bincount(h, minlength=1 << 16) for h in halves), zero), count)
    rest = (b[b >> 16 == first] & 0xFFFF for b in (_sortable(w, pattern) for w in weights))
    lower = sum((torch.bincount(r, minlength=1 << 16) for r in rest), zero)
    second, further = _bucket(lower, count - below)
    return first << 16 | second, count - below - further


def _bucket(histogram: torch.Tensor, rank: int) -> tuple[int, int]:
    """The bucket that holds the `rank`-th smallest value, from 1, and how many lie below it."""
    ends = histogram.cumsum(0)
    index = int(torch.searchsorted(ends, rank))
    return index, int(ends[index] - histogram[index])


def _sortable(weight: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Magnitudes as integers of the same order, flat; infinite where the pattern forbids a cut.

    The bits of floats that are not negative, read as integers, are ordered as the floats.
    """
    size = weight.abs().float()
    if pattern == "2of4":
        size = size.masked_fill(two_of_four(size), math.inf)
    return size.contiguous().view(torch.int32).flatten()
