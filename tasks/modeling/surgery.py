"""Cut a model down to smaller dense shapes, and build those shapes anew from a record.

`Shapes` is what ``surgery.json`` holds: per layer the attention heads that are left (by
their index in the original layer) and the number of feed-forward neurons. `reshape` gives
a freshly built model these shapes, so that weights load strictly; the ``keep_*`` functions
cut a model that has weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tasks.modeling.architecture import (
    Architecture,
    architecture_of,
    embeddings_of,
    encoder_of,
    layers_of,
    linear,
    replace,
)


@dataclass(frozen=True)
class LayerShape:
    """Heads left (indices in the original layer, ascending) and feed-forward neurons left."""

    heads: tuple[int, ...]
    ffn: int


Shapes = tuple[LayerShape, ...]


def shapes_of(model: nn.Module) -> Shapes:
    """The present shapes of a model that this module has built or cut."""
    known = getattr(model, "stillroom_shapes", None)
    if known is not None:
        return known
    config: Any = model.config
    full = LayerShape(tuple(range(config.num_attention_heads)), config.intermediate_size)
    return tuple(full for _ in layers_of(model))


def reshape(model: nn.Module, shapes: Shapes) -> nn.Module:
    """Give a freshly built model recorded shapes; the weights are whatever is left over."""
    for index, shape in enumerate(shapes):
        full = shapes_of(model)[index]
        keep_heads(model, index, [full.heads.index(head) for head in shape.heads])
        keep_neurons(model, index, range(shape.ffn))
    return model


def keep_heads(model: nn.Module, index: int, keep: Sequence[int]) -> None:
    """Keep attention heads of one layer, by their present position.

    Rows of the query, key and value projections and columns of the output projection go.
    """
    arch = architecture_of(model)
    layer, shapes = layers_of(model)[index], shapes_of(model)
    size = head_size(model)
    rows = torch.cat([torch.arange(head * size, (head + 1) * size) for head in keep])
    for name in (arch.query, arch.key, arch.value):
        replace(layer, name, sliced(linear(layer, name), rows=rows))
    replace(layer, arch.attention_output,
            sliced(linear(layer, arch.attention_output), columns=rows))  # fmt: skip
    if arch.head_attributes:
        attention: Any = layer.get_submodule(arch.attention)
        attention.num_attention_heads = len(keep)
        attention.all_head_size = len(keep) * size
    left = tuple(shapes[index].heads[head] for head in keep)
    _record(model, index, LayerShape(left, shapes[index].ffn))
    if arch.position_bias:
        _slice_position_bias(layer, arch, left)


def keep_neurons(model: nn.Module, index: int, keep: Sequence[int]) -> None:
    """Keep feed-forward neurons of one layer, by their present position."""
    arch = architecture_of(model)
    layer = layers_of(model)[index]
    which = torch.tensor(list(keep), dtype=torch.long)
    replace(layer, arch.ffn_in, sliced(linear(layer, arch.ffn_in), rows=which))
    replace(layer, arch.ffn_out, sliced(linear(layer, arch.ffn_out), columns=which))
    _record(model, index, LayerShape(shapes_of(model)[index].heads, len(which)))


def keep_layers(model: nn.Module, keep: Sequence[int]) -> None:
    """Keep whole layers, by their present position."""
    shapes, encoder = shapes_of(model), encoder_of(model).encoder
    encoder.layer = nn.ModuleList([layers_of(model)[index] for index in keep])
    model.config.num_hidden_layers = len(keep)  # type: ignore[union-attr]
    model.stillroom_shapes = tuple(shapes[index] for index in keep)  # type: ignore[assignment]


def keep_vocabulary(model: nn.Module, keep: Sequence[int], *, pad: int) -> None:
    """Keep rows of the word embedding; `pad` is the padding piece's new row."""
    embeddings = embeddings_of(model)
    old = embeddings.word_embeddings
    rows = old.weight.data[torch.tensor(list(keep), dtype=torch.long)]
    embeddings.word_embeddings = table(rows, padding=pad)
    config: Any = model.config
    config.vocab_size, config.pad_token_id = len(keep), pad


def keep_positions(model: nn.Module, length: int) -> None:
    """Keep the position rows that texts of at most `length` pieces can reach."""
    arch = architecture_of(model)
    embeddings = embeddings_of(model)
    count = min(length + arch.position_offset, embeddings.position_embeddings.num_embeddings)
    old = embeddings.position_embeddings
    embeddings.position_embeddings = table(old.weight.data[:count], padding=old.padding_idx)
    embeddings.position_ids = embeddings.position_ids[:, :count].clone()
    if hasattr(embeddings, "token_type_ids"):
        embeddings.token_type_ids = embeddings.token_type_ids[:, :count].clone()
    model.config.max_position_embeddings = count  # type: ignore[union-attr]


def head_size(model: nn.Module) -> int:
    """Channels of one attention head."""
    config: Any = model.config
    return int(config.hidden_size // config.num_attention_heads)


def sliced(
    old: nn.Linear, *, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> nn.Linear:
    """A smaller linear layer from rows (outputs) and columns (inputs) of another."""
    weight = old.weight.data
    bias = None if old.bias is None else old.bias.data
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight.clone())
    if bias is not None:
        new.bias = nn.Parameter(bias.clone())
    return new


def table(rows: torch.Tensor, *, padding: int | None) -> nn.Embedding:
    """An embedding with the given rows."""
    new = nn.Embedding(rows.shape[0], rows.shape[1], padding_idx=padding, device="meta")
    new.weight = nn.Parameter(rows.clone())
    return new


def _record(model: nn.Module, index: int, shape: LayerShape) -> None:
    shapes = list(shapes_of(model))
    shapes[index] = shape
    model.stillroom_shapes = tuple(shapes)  # type: ignore[assignment]


def _slice_position_bias(layer: nn.Module, arch: Architecture, heads: tuple[int, ...]) -> None:
    """Let a layer with fewer heads read its own rows of the bias that all layers share."""
    attention: Any = layer.get_submodule(arch.attention)
    if handle := getattr(attention, "stillroom_bias_hook", None):
        handle.remove()

    def take_heads(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, mask, bias, *rest = args
        return (states, mask, bias[:, list(heads)], *rest)

    attention.stillroom_bias_hook = attention.register_forward_pre_hook(take_heads)
