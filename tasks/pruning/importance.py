"""How much each attention head and each feed-forward neuron contributes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tasks.modeling.architecture import architecture_of, layers_of, linear
from tasks.modeling.surgery import head_size


@dataclass(frozen=True)
class LayerScores:
    """Saliency of each head ``[heads]`` and each neuron ``[ffn]`` of one layer."""

    heads: torch.Tensor
    neurons: torch.Tensor


def importance(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    method: str,
    seed: int,
) -> list[LayerScores]:
    """Score every head and neuron.

    ``activation``: what a unit adds to the residual stream, estimated as the root mean square
    of its activation over the calibration texts times the norm of its outgoing weights. It is
    the structured sum of Wanda's |W|·‖X‖ (Sun et al. 2023, eq. 1) over a unit's weights, and
    needs one forward pass, as in Minitron (Muralidharan et al. 2024, section 2.2).
    ``magnitude``: the norm of the unit's outgoing weights alone. ``random``: the control.

    Args:
        batches: ids and mask ``[batch, length]``; read only by ``activation``.
    """
    if method == "random":
        generator = torch.Generator().manual_seed(seed)
        return [
            LayerScores(*(torch.rand(len(s), generator=generator) for s in (w.heads, w.neurons)))
            for w in _outgoing(model, None)
        ]
    return _outgoing(model, activation_rms(model, batches) if method == "activation" else None)


def _outgoing(
    model: nn.Module, rms: list[tuple[torch.Tensor, torch.Tensor]] | None
) -> list[LayerScores]:
    """Norm of each unit's outgoing weights, each input channel weighed by its activation."""
    arch, size = architecture_of(model), head_size(model)
    scores = []
    for index, layer in enumerate(layers_of(model)):
        output = linear(layer, arch.attention_output).weight.detach()
        down = linear(layer, arch.ffn_out).weight.detach()
        context, hidden = (
            rms[index] if rms else (torch.ones(output.shape[1]), torch.ones(down.shape[1]))
        )
        channels = output.norm(dim=0) * context
        heads = channels.view(-1, size).square().sum(dim=1).sqrt()
        scores.append(LayerScores(heads=heads, neurons=down.norm(dim=0) * hidden))
    return scores


@torch.inference_mode()
def activation_rms(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per layer, root mean square over all real tokens of what enters its two output layers.

    Returns:
        For each layer the context channels ``[heads × head size]`` and the neurons ``[ffn]``.
    """
    arch = architecture_of(model)
    names = (arch.attention_output, arch.ffn_out)
    inputs = [[linear(layer, name) for name in names] for layer in layers_of(model)]
    sums = {m: torch.zeros(m.in_features, dtype=torch.float64) for pair in inputs for m in pair}
    tokens, mask = 0, torch.empty(0)

    def add(module: nn.Module, args: tuple[Any, ...]) -> None:
        real = args[0][mask.bool()].double()
        sums[module] += real.square().sum(dim=0)  # type: ignore[index]

    handles = [m.register_forward_pre_hook(add) for m in sums]
    try:
        model.eval()
        for ids, mask in batches:
            model(input_ids=ids, attention_mask=mask)
            tokens += int(mask.sum())
    finally:
        for handle in handles:
            handle.remove()
    rms = {m: (total / max(tokens, 1)).sqrt().float() for m, total in sums.items()}
    return [(rms[context], rms[hidden]) for context, hidden in inputs]
