"""Simulated int8 inside a PyTorch model, with step sizes that are learned.

    prepare(model, batches, profile, per_channel=True, embeddings=True)   # ranges from texts
    …train…                                                               # gradients go through
    grids = settle(model)                                                 # weights on their grids

`settle` leaves the model as it was built, with every weight on its grid, and says which grid that
is; `tasks.quantization.qdq` writes exactly these numbers into the graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tasks.hardware import Profile
from tasks.modeling.architecture import embeddings_of

TABLE_LEVELS = 127


class LearnedRound(torch.autograd.Function):
    """clamp(round(x / s) + z, low, high) − z, times s: LSQ.

    Esser et al. 2020, "Learned Step Size Quantization": the gradient passes straight through
    to x inside the range (their eq. 5), and to s it is round(x/s) − x/s inside, the clipped
    level outside (eq. 3), scaled by 1 / √(n · high) for n values that share a step
    (section 2.2).
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, step: torch.Tensor, zero: torch.Tensor, low: int, high: int
    ) -> torch.Tensor:
        scaled = x / step
        level = (torch.round(scaled) + zero).clamp(low, high) - zero
        ctx.save_for_backward(scaled, level, step)
        ctx.bounds = (low - zero, high - zero)
        ctx.weight = 1.0 / math.sqrt(x.numel() / step.numel() * high)
        return level * step

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        scaled, level, step = ctx.saved_tensors
        low, high = ctx.bounds
        inside = (scaled >= low) & (scaled <= high)
        slope = torch.where(inside, level - scaled, level)
        towards = (grad * slope * ctx.weight).sum_to_size(step.shape)
        return grad * inside, towards, None, None, None


class QuantLinear(nn.Linear):
    """`nn.Linear` on simulated bytes: weights per output channel or matrix, inputs per tensor."""

    weight_step: torch.Tensor
    """``[out, 1]``, or ``[1]`` where the matrix has one."""
    input_step: torch.Tensor
    """``[1]``."""
    input_zero: torch.Tensor
    """``[1]``, a whole number."""
    weight_high: int
    input_low: int
    input_high: int
    observing: bool
    least: float
    most: float

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.observing:
            self.least = min(self.least, float(input.detach().min()))
            self.most = max(self.most, float(input.detach().max()))
            return super().forward(input)
        x = LearnedRound.apply(
            input, self.input_step, self.input_zero, self.input_low, self.input_high
        )
        w = LearnedRound.apply(
            self.weight,
            self.weight_step,
            torch.zeros_like(self.input_zero),
            -self.weight_high,
            self.weight_high,
        )
        return nn.functional.linear(x, w, self.bias)


class QuantEmbedding(nn.Embedding):
    """`nn.Embedding` whose table has one scale and int8 levels."""

    weight_step: torch.Tensor
    """``[1]``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        table = LearnedRound.apply(
            self.weight,
            self.weight_step,
            torch.zeros_like(self.weight_step),
            -TABLE_LEVELS,
            TABLE_LEVELS,
        )
        return nn.functional.embedding(input, table, self.padding_idx)


@dataclass(frozen=True)
class Grid:
    """Where the levels of one module lie."""

    weight_scale: torch.Tensor
    """``[out]`` of a matrix with one for each channel, else a scalar."""
    input_scale: float | None
    """None for a table."""
    input_zero: int
    signed: bool
    """Inputs are int8 rather than uint8."""


def quantised_modules(model: nn.Module) -> Iterator[tuple[str, QuantLinear | QuantEmbedding]]:
    """All that `prepare` has changed, by name."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear | QuantEmbedding):
            yield name, module


def prepare(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    profile: Profile,
    *,
    per_channel: bool,
    embeddings: bool,
) -> None:
    """Make every matrix a simulated one, and embedding tables if asked for, in place.

    Steps begin where post-training quantisation would put them: the largest weight of a
    channel or a matrix, the range of the inputs on `batches`.

    Args:
        batches: ids and mask of calibration texts.
        per_channel: one step for each output channel instead of one for each matrix.
        embeddings: tables, too; else they stay as they are.
    """
    if embeddings:
        _fold_segment(model)
    for module in model.modules():
        if type(module) is nn.Linear:
            _begin_linear(module, profile, per_channel=per_channel)
        elif embeddings and type(module) is nn.Embedding and module.num_embeddings > 2:
            module.__class__ = QuantEmbedding
            step = module.weight.detach().abs().max().clamp_min(1e-8) / TABLE_LEVELS
            module.weight_step = nn.Parameter(step.reshape(1))
    model.eval()
    with torch.no_grad():
        for ids, mask in batches:
            model(input_ids=ids, attention_mask=mask)
    for _, module in quantised_modules(model):
        if isinstance(module, QuantLinear):
            _take_range(module)


@torch.no_grad()
def _fold_segment(model: nn.Module) -> None:
    """Add the one segment to the positions, as the export does: then its table is this one."""
    embeddings = embeddings_of(model)
    if hasattr(embeddings, "token_type_embeddings"):
        segment = embeddings.token_type_embeddings.weight
        embeddings.position_embeddings.weight += segment[0].clone()
        segment.zero_()
        segment.requires_grad_(False)


def _begin_linear(module: nn.Linear, profile: Profile, *, per_channel: bool) -> None:
    module.__class__ = QuantLinear
    assert isinstance(module, QuantLinear)
    module.weight_high = 63 if profile.reduce_range else 127
    module.input_low, module.input_high = (-128, 127) if profile.symmetric else (0, 255)
    size = module.weight.detach().abs()
    largest = size.amax(1, keepdim=True) if per_channel else size.amax().reshape(1)
    module.weight_step = nn.Parameter(largest.clamp_min(1e-8) / module.weight_high)
    module.observing, module.least, module.most = True, 0.0, 0.0


def _take_range(module: QuantLinear) -> None:
    """Step and zero point of the inputs from what was seen."""
    module.observing = False
    if module.input_low < 0:
        step, zero = max(-module.least, module.most, 1e-8) / module.input_high, 0
    else:
        step = max(module.most - module.least, 1e-8) / module.input_high
        zero = min(max(round(-module.least / step), 0), module.input_high)
    module.input_step = nn.Parameter(torch.tensor([step], dtype=torch.float32))
    module.register_buffer("input_zero", torch.tensor([float(zero)]))


@torch.no_grad()
def settle(model: nn.Module) -> dict[str, Grid]:
    """Put every weight on its grid and make the modules plain again, in place; by module name."""
    grids = {}
    for name, module in list(quantised_modules(model)):
        step = module.weight_step.abs()
        if isinstance(module, QuantLinear):
            levels = torch.round(module.weight / step).clamp(
                -module.weight_high, module.weight_high
            )
            grids[name] = Grid(step.squeeze(-1).clone(), float(module.input_step.abs()),
                               int(module.input_zero), signed=module.input_low < 0)  # fmt: skip
            del module.input_step, module.input_zero
            plain: Any = nn.Linear
        else:
            levels = torch.round(module.weight / step).clamp(-TABLE_LEVELS, TABLE_LEVELS)
            grids[name] = Grid(step.squeeze(-1).clone(), None, 0, signed=True)
            plain = nn.Embedding
        module.weight.copy_(levels * step + 0.0)  # no negative zeros: content is compared by bytes
        del module.weight_step
        module.__class__ = plain
    return grids
