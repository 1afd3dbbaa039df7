"""Where each transformer keeps its parts: the one place that knows BERT from MPNet from Llama.

Adding an architecture is one entry in `ARCHITECTURES` (and its sizes in ``tests/tiny_models.py``);
every test of surgery and export then runs for it, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as altered
from typing import Any

from torch import nn

from tasks.errors import ParamsError


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Names of modules; "" stands for the module itself.

    How transformers 5.23 reads the number of heads in a forward pass: all of these infer it
    from the projections, but MPNet, which has it in attributes.
    """

    model_type: str
    encoder: str
    """The module that holds embeddings and layers."""
    layers: str
    """Of the encoder: the list of layers."""

    # of a layer
    attention: str
    """The module that splits projections into heads."""
    query: str
    key: str
    value: str
    attention_output: str
    ffn_in: str
    ffn_gate: str | None = None
    """A second projection that multiplies the activated one, neuron by neuron."""
    ffn_out: str
    norms: tuple[str, str]

    # of the encoder
    embeddings: str
    """The module that holds the tables."""
    words: str
    """Of the embeddings: the table of word pieces."""
    tables: tuple[str, ...]
    """Of the embeddings: what is added to the words, by position and by segment."""
    norm: str
    """The norm that belongs to no layer."""

    # of the whole model
    head: tuple[str, ...]
    """Projections from the pooled hidden state to the logits."""
    ffn_size: str = "intermediate_size"
    """The key of ``config.json`` for the number of neurons."""
    positions_after_padding: bool = False
    """The first token's row in the position table is the one after the padding id."""
    head_attributes: bool = False
    """The forward pass reads the head count from attributes, not from the projections."""
    position_bias: bool = False
    """All layers share one bias ``[1, heads, query, key]`` that is added to attention scores."""
    causal: bool = False
    """A token sees those before it only, and the last one speaks for the text."""


BERT = Architecture(
    model_type="bert",
    encoder="bert",
    layers="encoder.layer",
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    embeddings="embeddings",
    words="word_embeddings",
    tables=("position_embeddings", "token_type_embeddings"),
    norm="embeddings.LayerNorm",
    head=("bert.pooler.dense", "classifier"),
)
ROBERTA = altered(
    BERT,
    model_type="roberta",
    encoder="roberta",
    head=("classifier.dense", "classifier.out_proj"),
    positions_after_padding=True,
)
MPNET = altered(
    ROBERTA,
    model_type="mpnet",
    encoder="mpnet",
    attention="attention.attn",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attention_output="attention.attn.o",
    norms=("attention.LayerNorm", "output.LayerNorm"),
    tables=("position_embeddings",),
    head_attributes=True,
    position_bias=True,
)
DISTILBERT = Architecture(
    model_type="distilbert",
    encoder="distilbert",
    layers="transformer.layer",
    attention="attention",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    ffn_in="ffn.lin1",
    ffn_out="ffn.lin2",
    norms=("sa_layer_norm", "output_layer_norm"),
    embeddings="embeddings",
    words="word_embeddings",
    tables=("position_embeddings",),
    norm="embeddings.LayerNorm",
    head=("pre_classifier", "classifier"),
    ffn_size="hidden_dim",
)
LLAMA = Architecture(
    model_type="llama",
    encoder="model",
    layers="layers",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.o_proj",
    ffn_in="mlp.up_proj",
    ffn_gate="mlp.gate_proj",
    ffn_out="mlp.down_proj",
    norms=("input_layernorm", "post_attention_layernorm"),
    embeddings="",
    words="embed_tokens",
    tables=(),
    norm="norm",
    head=("score",),
    causal=True,
)
ARCHITECTURES = {
    arch.model_type: arch
    for arch in (
        BERT,
        DISTILBERT,
        LLAMA,
        MPNET,
        ROBERTA,
        altered(ROBERTA, model_type="camembert"),
        altered(ROBERTA, model_type="xlm-roberta"),
    )
}


def architecture_of(model: Any) -> Architecture:
    """The entry for a model, or for anything else that has a ``config``.

    Raises:
        ParamsError: there is none.
    """
    return _entry(model.config.model_type)


def _entry(model_type: str) -> Architecture:
    if model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ParamsError(
            f"teacher: found model_type {model_type!r}, expected one of {known}",
            next_command="stillroom compress --set teacher.source=package",
        )
    return ARCHITECTURES[model_type]


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The transformer layers, in order."""
    layers: nn.ModuleList = encoder_of(model).get_submodule(architecture_of(model).layers)
    return layers


def encoder_of(model: nn.Module) -> Any:
    """The module that holds embeddings and layers."""
    return model.get_submodule(architecture_of(model).encoder)


def embeddings_of(model: nn.Module) -> Any:
    """The module that holds the word table, and the position table where there is one."""
    return encoder_of(model).get_submodule(architecture_of(model).embeddings)


def words_of(model: nn.Module) -> Any:
    """Piece ids → vectors: an ``nn.Embedding``, or a `FactorisedEmbedding`."""
    return embeddings_of(model).get_submodule(architecture_of(model).words)


def norms_of(model: nn.Module) -> Iterator[Any]:
    """All norms over the hidden channels."""
    arch = architecture_of(model)
    yield encoder_of(model).get_submodule(arch.norm)
    for layer in layers_of(model):
        yield from (layer.get_submodule(name) for name in arch.norms)


def linear(layer: nn.Module, name: str) -> nn.Linear:
    """One projection of a layer."""
    module = layer.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def replace(layer: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, child = name.rpartition(".")
    setattr(layer.get_submodule(parent), child, new)


def set_sizes(config: Any, *, layers: int, hidden: int, heads: int, ffn: int) -> None:
    """Give the configuration of a model that is yet to be built other sizes.

    Keys and values get as many heads as queries.
    """
    config.num_hidden_layers, config.hidden_size = layers, hidden
    config.num_attention_heads = heads
    setattr(config, _entry(config.model_type).ffn_size, ffn)
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads, config.head_dim = heads, hidden // heads
