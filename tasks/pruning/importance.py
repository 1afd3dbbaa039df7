"""How much each attention head, feed-forward neuron and embedding channel contributes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from tasks.modeling.architecture import (
    architecture_of,
    embeddings_of,
    layers_of,
    linear,
    norms_of,
    words_of,
)
from tasks.modeling.factorisation import FactorisedEmbedding
from tasks.modeling.surgery import head_size, hidden_size

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Ids and mask ``[batch, length]``, labels ``[batch]``; all int64."""


@dataclass(frozen=True)
class LayerScores:
    """Saliency of each head ``[heads]`` and each neuron ``[ffn]`` of one layer."""

    heads: torch.Tensor
    neurons: torch.Tensor


@dataclass(frozen=True)
class ModelScores:
    """Saliency of every unit: of each layer, and of the channels ``[hidden]`` all layers share."""

    layers: list[LayerScores]
    channels: torch.Tensor


@dataclass(frozen=True)
class Activations:
    """Root mean squares over all real tokens; what `importance` takes from one forward pass."""

    context: list[torch.Tensor]
    """Per layer, what enters the attention's output projection: ``[heads × head size]``."""
    neurons: list[torch.Tensor]
    """Per layer, what enters the feed-forward's output projection: ``[ffn]``."""
    norms: list[torch.Tensor]
    """Per layer norm of the model, what leaves it: ``[hidden]``."""


def importance(
    model: nn.Module, batches: Iterable[Batch], *, method: str, seed: int
) -> ModelScores:
    """Score every head, neuron and channel; the higher, the more is lost without it.

    ``activation``: what a unit adds to the residual stream, estimated as the root mean square
    of its activation over the calibration texts times the norm of its outgoing weights. It is
    the structured sum of Wanda's |W|·‖X‖ (Sun et al. 2023, eq. 1) over a unit's weights, and
    needs one forward pass, as in Minitron (Muralidharan et al. 2024, section 2.2). For a
    channel, the root mean square of what each layer norm puts out, summed over the norms
    (there, layer-wise scores are summed to network-wide ones).

    ``magnitude``: the norm of the unit's outgoing weights alone; of all weights that a channel
    owns (see `channel_axes`).

    ``taylor``: the mean over the texts of |Σ gradient × weight|, summed over the same weights:
    to first order, the change of a text's loss without the unit (Molchanov et al. 2019, who
    square it; Michel et al. 2019, section 4.1, for heads). In nats of cross-entropy.

    ``fisher``: half the mean over the texts of (Σ gradient × weight)²: to second order, with
    the empirical Fisher information for the Hessian (Theis et al. 2018; Liu et al. 2021 for
    weights that go together).

    Taylor and Fisher are estimated per text, not per batch: texts pull a trained model's
    weights both ways, so that gradients of a batch cancel, and a score would depend on which
    texts share one. It costs nothing, see `_gate_gradients`.

    ``random``: the control; depends on the seed alone.

    Args:
        batches: read once, by all but ``magnitude`` and ``random``; labels only by ``taylor``
            and ``fisher``.

    Raises:
        ValueError: there is no such method.
    """
    if method == "random":
        return _random(model, seed)
    if method == "magnitude":
        return ModelScores(_outgoing(model, None), _channel_norms(model))
    if method == "activation":
        seen = activation_rms(model, batches)
        return ModelScores(_outgoing(model, seen), torch.stack(seen.norms).sum(dim=0))
    if method == "taylor":
        return _mean_over_texts(model, batches, torch.abs)
    if method == "fisher":
        return _mean_over_texts(model, batches, lambda g: g.square() / 2)
    raise ValueError(f"no such importance: {method!r}")


def _random(model: nn.Module, seed: int) -> ModelScores:
    generator = torch.Generator().manual_seed(seed)
    layers = [
        LayerScores(*(torch.rand(len(s), generator=generator) for s in (w.heads, w.neurons)))
        for w in _outgoing(model, None)
    ]
    return ModelScores(layers, torch.rand(hidden_size(model), generator=generator))


def _outgoing(model: nn.Module, seen: Activations | None) -> list[LayerScores]:
    """Norm of each unit's outgoing weights, each input channel weighed by its activation."""
    arch, size = architecture_of(model), head_size(model)
    scores = []
    for index, layer in enumerate(layers_of(model)):
        channels = linear(layer, arch.attention_output).weight.detach().norm(dim=0)
        neurons = linear(layer, arch.ffn_out).weight.detach().norm(dim=0)
        if seen is not None:
            channels, neurons = channels * seen.context[index], neurons * seen.neurons[index]
        heads = channels.view(-1, size).square().sum(dim=1).sqrt()
        scores.append(LayerScores(heads=heads, neurons=neurons))
    return scores


def _channel_norms(model: nn.Module) -> torch.Tensor:
    """Norm over all weights that each channel owns ``[hidden]``."""
    total = torch.zeros(hidden_size(model), dtype=torch.float64)
    for parameter, axis in channel_axes(model):
        slices = torch.atleast_2d(parameter.detach().movedim(axis, -1))
        total += slices.norm(dim=0).double().square()
    return total.sqrt().float()


@torch.inference_mode()
def activation_rms(model: nn.Module, batches: Iterable[Batch]) -> Activations:
    """One forward pass: how large each unit's activation is over all real tokens."""
    arch, layers = architecture_of(model), layers_of(model)
    context = [linear(layer, arch.attention_output) for layer in layers]
    hidden = [linear(layer, arch.ffn_out) for layer in layers]
    norms = list(norms_of(model))
    sums = {m: torch.zeros(m.in_features, dtype=torch.float64) for m in (*context, *hidden)}
    sums |= {m: torch.zeros(hidden_size(model), dtype=torch.float64) for m in norms}
    tokens, mask = 0, torch.empty(0)

    def add(module: nn.Module, states: torch.Tensor) -> None:
        parts = states.split(256, dim=-1)  # a copy in double precision of all would be large
        squares = [part[mask.bool()].double().square_().sum(dim=0) for part in parts]
        sums[module] += torch.cat(squares)  # type: ignore[index]

    inputs = [m.register_forward_pre_hook(lambda m, a: add(m, a[0])) for m in (*context, *hidden)]
    outputs = [m.register_forward_hook(lambda m, _, out: add(m, out)) for m in norms]
    with removed_after([*inputs, *outputs]):
        model.eval()
        for ids, mask, _ in batches:
            model(input_ids=ids, attention_mask=mask)
            tokens += int(mask.sum())
    rms = {m: (total / max(tokens, 1)).sqrt().float() for m, total in sums.items()}
    return Activations(*([rms[m] for m in part] for part in (context, hidden, norms)))


def _mean_over_texts(
    model: nn.Module, batches: Iterable[Batch], saliency: Callable[[torch.Tensor], torch.Tensor]
) -> ModelScores:
    """Mean over all texts of the saliency of each gate's gradient."""
    sums = [torch.zeros(width, dtype=torch.float64) for width in _gate_widths(model)]
    texts = 0
    for batch in batches:
        for part in _parts(model, batch):
            for total, gradient in zip(sums, _gate_gradients(model, part), strict=True):
                total += saliency(gradient.double()).sum(dim=0)
            texts += len(part[0])
    *layers, channels = [(total / max(texts, 1)).float() for total in sums]
    pairs = zip(layers[::2], layers[1::2], strict=True)
    return ModelScores([LayerScores(heads=h, neurons=n) for h, n in pairs], channels)


def _gate_widths(model: nn.Module) -> list[int]:
    """Heads and neurons of the first layer, of the second, …, and last the channels."""
    arch, size, widths = architecture_of(model), head_size(model), []
    for layer in layers_of(model):
        widths.append(linear(layer, arch.attention_output).in_features // size)
        widths.append(linear(layer, arch.ffn_out).in_features)
    return [*widths, hidden_size(model)]


def _gate_gradients(model: nn.Module, batch: Batch) -> Sequence[torch.Tensor]:
    """Derivative of each text's loss by a gate of one that multiplies a unit's weights.

    By the chain rule it is Σ gradient × weight over these weights, and there is a gate for each
    text, so that per-text sums come out of one backward pass over activations: no gradient of a
    weight is ever made, let alone one for each text.

    Returns:
        One tensor ``[batch, units]`` for each of `_gate_widths`.
    """
    ids, mask, labels = batch
    dtype = next(model.parameters()).dtype
    gates = [
        torch.ones(len(ids), width, dtype=dtype, requires_grad=True)
        for width in _gate_widths(model)
    ]
    model.eval()
    with removed_after(_attach(model, gates)):
        logits = model(input_ids=ids, attention_mask=mask).logits
        # texts do not see each other: the gradient of the sum is each text's own
        return torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), gates)


def _attach(model: nn.Module, gates: list[torch.Tensor]) -> list[RemovableHandle]:
    """Let each gate multiply what its unit's weights read or write."""
    arch, size = architecture_of(model), head_size(model)

    def at_input(module: nn.Module, gate: torch.Tensor) -> RemovableHandle:
        return module.register_forward_pre_hook(lambda _, a: (_scaled(a[0], gate), *a[1:]))

    def at_output(module: nn.Module, gate: torch.Tensor) -> RemovableHandle:
        return module.register_forward_hook(lambda _, args, out: _scaled(out, gate))

    handles = []
    for index, layer in enumerate(layers_of(model)):
        heads = gates[2 * index].repeat_interleave(size, dim=1)
        handles.append(at_input(linear(layer, arch.attention_output), heads))
        handles.append(at_input(linear(layer, arch.ffn_out), gates[2 * index + 1]))
    readers, writers = _channel_modules(model)
    handles.extend(at_input(module, gates[-1]) for module in readers)
    handles.extend(at_output(module, gates[-1]) for module in writers)
    return handles


def _scaled(states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """States ``[batch or 1, …, units]`` times gates ``[batch, units]``."""
    return states * gate.view(len(gate), *[1] * (states.dim() - 2), -1)


def _parts(model: nn.Module, batch: Batch) -> Iterator[Batch]:
    """As many texts at a time as keep a backward pass within the model's own size.

    Scores are means over texts, so it does not matter which of them go together.
    """
    ids, mask, labels = batch
    length = ids.shape[1]
    floats = length * sum(_floats_per_token(model, layer, length) for layer in layers_of(model))
    size = max(sum(p.numel() for p in model.parameters()) // floats, 1)
    for start in range(0, len(ids), size):
        where = slice(start, start + size)
        yield ids[where], mask[where], labels[where]


def channel_axes(model: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """All parameters that a channel of the hidden state owns a slice of, with the axis it is on.

    Columns of the embedding tables, gains and shifts of the layer norms, columns of whatever
    reads the hidden state, rows and biases of whatever writes it.
    """
    readers, writers = _channel_modules(model)
    owned = [(module.weight, 1) for module in readers]
    for module in writers:
        owned.append((module.weight, 1 if isinstance(module, nn.Embedding) else 0))
        if getattr(module, "bias", None) is not None:
            owned.append((module.bias, 0))
    return owned  # type: ignore[return-value]


def _channel_modules(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Modules that read the hidden state, and modules that write it."""
    arch, layers, words = architecture_of(model), layers_of(model), words_of(model)
    reading = [n for n in (arch.query, arch.key, arch.value, arch.ffn_in, arch.ffn_gate) if n]
    readers: list[nn.Module] = [linear(layer, name) for layer in layers for name in reading]
    tables = [embeddings_of(model).get_submodule(name) for name in arch.tables]
    writing = (arch.attention_output, arch.ffn_out)
    return [*readers, linear(model, arch.head[0])], [
        words.project if isinstance(words, FactorisedEmbedding) else words,
        *tables,
        *norms_of(model),
        *(linear(layer, name) for layer in layers for name in writing),
    ]


def _floats_per_token(model: nn.Module, layer: nn.Module, length: int) -> int:
    """Numbers that a backward pass through a layer holds for each token, rather too many."""
    arch = architecture_of(model)
    context = linear(layer, arch.attention_output).in_features
    neurons = linear(layer, arch.ffn_out).in_features
    scores = length * context // head_size(model)
    return 16 * hidden_size(model) + 6 * (context + neurons) + 4 * scores


@contextmanager
def removed_after(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Remove hooks, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
