"""Cut a model down to smaller dense shapes, and build those shapes anew from a record.

``surgery.json`` holds two things: what each layer has of its own (`LayerShape`: attention heads
and feed-forward neurons that are left) and what all share (`ModelShape`: hidden channels, rank of
the word table, units of the head). `reshape` gives a freshly built model these shapes, so that
weights load strictly; the ``keep_*`` functions cut a model that has weights, in any order.
``config.json`` keeps the sizes of the model before it was cut, for it is what the library builds;
number of layers, pieces and positions are the exception: there both change together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from dataclasses import replace as altered
from typing import Any

import torch
from torch import nn

from tasks.errors import ParamsError
from tasks.modeling.architecture import (
    architecture_of,
    embeddings_of,
    encoder_of,
    layers_of,
    linear,
    norms_of,
    replace,
    words_of,
)
from tasks.modeling.factorisation import FactorisedEmbedding, factorised


@dataclass(frozen=True)
class LayerShape:
    """Heads left (indices in the original layer, ascending) and feed-forward neurons left.

    With grouped queries a head is a key/value head together with the queries that read it.
    """

    heads: tuple[int, ...]
    ffn: int


Shapes = tuple[LayerShape, ...]


@dataclass(frozen=True)
class ModelShape:
    """What all layers share."""

    head_size: int
    """Context channels of one head (of one group of heads with grouped queries)."""
    channels: tuple[int, ...]
    """Hidden channels left, by their index in the original model, ascending."""
    pooled: int
    """Units between the pooled hidden state and the logits; 0 if there is no such layer."""
    embedding_rank: int | None
    """Of the word table; None while it is whole."""


def shapes_of(model: nn.Module) -> Shapes:
    """The present shapes of a model that this module has built or cut."""
    known = getattr(model, "stillroom_shapes", None)
    if known is not None:
        return known
    config: Any = model.config
    arch = architecture_of(model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return tuple(
        LayerShape(tuple(range(heads)), linear(layer, arch.ffn_in).out_features)
        for layer in layers_of(model)
    )


def model_shape_of(model: nn.Module) -> ModelShape:
    """The present shape that all layers of a model share."""
    known = getattr(model, "stillroom_model_shape", None)
    if known is not None:
        return known
    arch, shapes = architecture_of(model), shapes_of(model)
    context = linear(layers_of(model)[0], arch.attention_output).in_features
    return ModelShape(
        head_size=context // len(shapes[0].heads),
        channels=tuple(range(model.config.hidden_size)),  # type: ignore[union-attr,arg-type]
        pooled=linear(model, arch.head[0]).out_features if len(arch.head) > 1 else 0,
        embedding_rank=None,
    )


def head_size(model: nn.Module) -> int:
    """Context channels of one head, or of one group of heads that share a key and a value."""
    return model_shape_of(model).head_size


def hidden_size(model: nn.Module) -> int:
    """Hidden channels that are left; ``config.hidden_size`` is what there was."""
    return len(model_shape_of(model).channels)


def reshape(model: nn.Module, shapes: Shapes, shared: ModelShape | None = None) -> nn.Module:
    """Give a freshly built model recorded shapes; the weights are whatever is left over."""
    for index, shape in enumerate(shapes):
        full = shapes_of(model)[index]
        keep_heads(model, index, [full.heads.index(head) for head in shape.heads])
        keep_neurons(model, index, range(shape.ffn))
    if shared is None:
        return model
    present = model_shape_of(model)
    if shared.channels != present.channels:
        keep_channels(model, [present.channels.index(channel) for channel in shared.channels])
    if shared.pooled != present.pooled:
        keep_pooled(model, range(shared.pooled))
    if shared.embedding_rank is not None:
        rank, whole = shared.embedding_rank, words_of(model)
        pieces, channels = whole.weight.shape
        empty = FactorisedEmbedding(
            torch.zeros(pieces, rank), torch.zeros(channels, rank), padding=whole.padding_idx
        )
        _replace_words(model, empty)
        _share(model, embedding_rank=rank)
    return model


def keep_heads(model: nn.Module, index: int, keep: Sequence[int]) -> None:
    """Keep attention heads of one layer, by their present position.

    Rows of the query, key and value projections and columns of the output projection go. A key
    that several queries read goes with all of them.
    """
    _share(model)  # once heads are gone, their size cannot be told from the layers
    arch = architecture_of(model)
    layer, shape = layers_of(model)[index], shapes_of(model)[index]
    present = len(shape.heads)
    for name in (arch.query, arch.key, arch.value):
        old = linear(layer, name)
        replace(layer, name, sliced(old, rows=_blocks(keep, old.out_features // present)))
    output = linear(layer, arch.attention_output)
    columns = _blocks(keep, head_size(model))
    replace(layer, arch.attention_output, sliced(output, columns=columns))
    left = tuple(shape.heads[head] for head in keep)
    attention: Any = layer.get_submodule(arch.attention)
    if arch.head_attributes:
        attention.num_attention_heads = len(keep)
        attention.all_head_size = len(columns)
    if arch.position_bias:
        _slice_position_bias(attention, left)
    _record(model, index, LayerShape(left, shape.ffn))


def keep_neurons(model: nn.Module, index: int, keep: Sequence[int]) -> None:
    """Keep feed-forward neurons of one layer, by their present position."""
    arch = architecture_of(model)
    layer, which = layers_of(model)[index], _index(keep)
    for name in (arch.ffn_in, arch.ffn_gate):
        if name is not None:
            replace(layer, name, sliced(linear(layer, name), rows=which))
    replace(layer, arch.ffn_out, sliced(linear(layer, arch.ffn_out), columns=which))
    _record(model, index, LayerShape(shapes_of(model)[index].heads, len(which)))


def keep_channels(model: nn.Module, keep: Sequence[int]) -> None:
    """Keep hidden channels of the whole model, by their present position.

    What reads the residual stream loses columns, what writes to it loses rows, norms take their
    statistics over the channels that are left. The inner units of the head have a basis of their
    own and stay: see `keep_pooled`.
    """
    arch, shared, which = architecture_of(model), model_shape_of(model), _index(keep)
    words = words_of(model)
    if isinstance(words, FactorisedEmbedding):
        words.project = sliced(words.project, rows=which)
    else:
        _replace_words(model, table(words.weight.data[:, which], padding=words.padding_idx))
    embeddings = embeddings_of(model)
    for name in arch.tables:
        old = embeddings.get_submodule(name)
        replace(embeddings, name, table(old.weight.data[:, which], padding=old.padding_idx))
    for layer in layers_of(model):
        for reader in (arch.query, arch.key, arch.value, arch.ffn_in, arch.ffn_gate):
            if reader is not None:
                replace(layer, reader, sliced(linear(layer, reader), columns=which))
        for writer in (arch.attention_output, arch.ffn_out):
            replace(layer, writer, sliced(linear(layer, writer), rows=which))
    for norm in norms_of(model):
        _slice_norm(norm, which)
    replace(model, arch.head[0], sliced(linear(model, arch.head[0]), columns=which))
    _share(model, channels=tuple(shared.channels[channel] for channel in keep))


def keep_pooled(model: nn.Module, keep: Sequence[int]) -> None:
    """Keep units between the pooled hidden state and the logits, by their present position.

    Raises:
        ParamsError: the head is a single projection.
    """
    arch, which = architecture_of(model), _index(keep)
    if len(arch.head) < 2:
        raise ParamsError(
            f"prune.hidden_keep: found units of the head of a {arch.model_type}, expected none: "
            "its logits are one projection of the hidden state",
            next_command="stillroom compress --set prune.hidden_keep=1",
        )
    inner, outer = arch.head
    replace(model, inner, sliced(linear(model, inner), rows=which))
    replace(model, outer, sliced(linear(model, outer), columns=which))
    _share(model, pooled=len(which))


def keep_layers(model: nn.Module, keep: Sequence[int]) -> None:
    """Keep whole layers, by their present position."""
    _share(model)
    shapes, arch = shapes_of(model), architecture_of(model)
    left = nn.ModuleList([layers_of(model)[index] for index in keep])
    for position, layer in enumerate(left):
        attention: Any = layer.get_submodule(arch.attention)
        if hasattr(attention, "layer_idx"):  # its place in a cache
            attention.layer_idx = position
    replace(encoder_of(model), arch.layers, left)
    model.config.num_hidden_layers = len(keep)  # type: ignore[union-attr]
    model.stillroom_shapes = tuple(shapes[index] for index in keep)  # type: ignore[assignment]


def keep_vocabulary(model: nn.Module, keep: Sequence[int], *, pad: int) -> None:
    """Keep rows of the word embedding; `pad` is the padding piece's new row.

    Raises:
        ParamsError: the padding piece moves, and positions are counted from its id.
    """
    words, which = words_of(model), _index(keep)
    embeddings = embeddings_of(model)
    if architecture_of(model).positions_after_padding and pad != embeddings.padding_idx:
        raise ParamsError(
            f"distill.vocabulary.trim: found the padding piece in row {pad}, expected "
            f"{embeddings.padding_idx}, from which this architecture counts its positions",
            next_command="stillroom compress --set distill.vocabulary.trim=false",
        )
    if isinstance(words, FactorisedEmbedding):
        words.table = table(words.table.weight.data[which], padding=pad)
    else:
        _replace_words(model, table(words.weight.data[which], padding=pad))
    config: Any = model.config
    config.vocab_size, config.pad_token_id = len(which), pad


def positions_needed(model: nn.Module, length: int) -> int:
    """Rows of the position table that texts of `length` pieces reach; 0 if positions are rotary.

    Raises:
        ParamsError: the table has fewer.
    """
    embeddings, arch = embeddings_of(model), architecture_of(model)
    if "position_embeddings" not in arch.tables:
        return 0
    rows = embeddings.position_embeddings.num_embeddings
    before = embeddings.padding_idx + 1 if arch.positions_after_padding else 0
    if length + before > rows:
        places = rows - before
        raise ParamsError(
            f"data.max_length: found {length}, expected at most {places}, the positions that this "
            f"{model.config.model_type} has learned",  # type: ignore[union-attr]
            next_command=f"stillroom compress --set data.max_length={places}",
        )
    return length + before


def keep_positions(model: nn.Module, length: int) -> None:
    """Keep the position rows that texts of at most `length` pieces can reach.

    Raises:
        ParamsError: there are fewer rows than such texts need.
    """
    count = positions_needed(model, length)
    if not count:
        return
    embeddings = embeddings_of(model)
    old = embeddings.position_embeddings
    embeddings.position_embeddings = table(old.weight.data[:count], padding=old.padding_idx)
    embeddings.position_ids = embeddings.position_ids[:, :count].clone()
    if hasattr(embeddings, "token_type_ids"):
        embeddings.token_type_ids = embeddings.token_type_ids[:, :count].clone()
    model.config.max_position_embeddings = count  # type: ignore[union-attr]


def factorise_embeddings(model: nn.Module, rank: int) -> None:
    """Replace the word table by its best product of two, or a product by one of lower rank.

    Raises:
        ParamsError: the rank is not between 1 and the number of channels.
    """
    if not 1 <= rank <= hidden_size(model):
        raise ParamsError(
            f"prune.embedding_rank: found {rank}, expected 1 to {hidden_size(model)}, "
            "the hidden channels",
            next_command="stillroom compress --set prune.embedding_rank=0",
        )
    _replace_words(model, factorised(words_of(model), rank))
    _share(model, embedding_rank=rank)


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


def _index(keep: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(keep), dtype=torch.long)


def _blocks(keep: Iterable[int], size: int) -> torch.Tensor:
    """Indices of the channels of some blocks of equal size."""
    return torch.cat([torch.arange(block * size, (block + 1) * size) for block in keep])


def _record(model: nn.Module, index: int, shape: LayerShape) -> None:
    shapes = list(shapes_of(model))
    shapes[index] = shape
    model.stillroom_shapes = tuple(shapes)  # type: ignore[assignment]


def _share(model: nn.Module, **changes: Any) -> None:
    """Write down what all layers share, with some of it changed."""
    model.stillroom_model_shape = altered(model_shape_of(model), **changes)  # type: ignore[assignment]


def _replace_words(model: nn.Module, new: nn.Module) -> None:
    replace(embeddings_of(model), architecture_of(model).words, new)


def _slice_norm(norm: Any, which: torch.Tensor) -> None:
    """A norm, in place, over some of its channels."""
    norm.weight = nn.Parameter(norm.weight.data[which].clone())
    if getattr(norm, "bias", None) is not None:
        norm.bias = nn.Parameter(norm.bias.data[which].clone())
    if isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (len(which),)


def _slice_position_bias(attention: Any, heads: tuple[int, ...]) -> None:
    """Let a layer with fewer heads read its own rows of the bias that all layers share."""
    if not hasattr(attention, "stillroom_heads"):
        attention.register_forward_pre_hook(_take_heads)
    attention.stillroom_heads = list(heads)


def _take_heads(attention: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    states, mask, bias, *rest = args
    return (states, mask, bias[:, attention.stillroom_heads], *rest)
