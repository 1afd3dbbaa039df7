"""Which layers go: those that change the hidden state least."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tasks.errors import ParamsError
from tasks.modeling.architecture import layers_of
from tasks.pruning.importance import Batch, removed_after
from tasks.pruning.width import keep_best


@torch.inference_mode()
def block_influence(model: nn.Module, batches: Iterable[Batch]) -> torch.Tensor:
    """How much each layer turns the hidden state: 1 − mean cosine of its input and output.

    The mean is over all real tokens (Men et al. 2024, ShortGPT, eq. 1).

    Args:
        batches: read once; labels are not used.

    Returns:
        ``[layers]``, 0 (changes nothing but lengths) to 2.
    """
    layers = layers_of(model)
    sums = torch.zeros(len(layers), dtype=torch.float64)
    tokens, mask = 0, torch.empty(0)

    def add(index: int, args: tuple[Any, ...], out: Any) -> None:
        real = mask.bool()
        before, after = args[0][real], (out[0] if isinstance(out, tuple) else out)[real]
        # in double precision: a layer that does next to nothing is 1 minus a number close to 1
        sums[index] += F.cosine_similarity(before.double(), after.double(), dim=-1).sum()

    handles = [
        layer.register_forward_hook(lambda _, args, out, index=index: add(index, args, out))
        for index, layer in enumerate(layers)
    ]
    with removed_after(handles):
        model.eval()
        for ids, mask, _ in batches:
            model(input_ids=ids, attention_mask=mask)
            tokens += int(mask.sum())
    return (1 - sums / max(tokens, 1)).float()


def plan_depth(influence: torch.Tensor, drop: int) -> tuple[int, ...]:
    """Positions of the layers that stay, ascending: the `drop` least influential ones go.

    Influence changes with what is gone; to have it estimated anew, drop one layer at a time.

    Args:
        influence: ``[layers]``, as from `block_influence`; of equal layers the later ones go.

    Raises:
        ParamsError: no layer would be left.
    """
    require_one_left(len(influence), drop)
    return keep_best(influence, len(influence) - drop)


def require_one_left(layers: int, drop: int) -> None:
    """Refuse to drop every layer."""
    if not 0 <= drop < layers:
        raise ParamsError(
            f"prune.drop_layers: found {drop}, expected 0 to {layers - 1}: "
            f"the model has {layers} layers and one has to stay",
            next_command=f"stillroom compress --set prune.drop_layers={layers - 1}",
        )
