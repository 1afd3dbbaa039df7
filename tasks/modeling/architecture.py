"""Where each encoder keeps its parts: the one place that knows BERT from MPNet.

Adding an architecture is one entry in `ARCHITECTURES`; every test of surgery runs for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tasks.errors import ParamsError


@dataclass(frozen=True)
class Architecture:
    """Names of modules; those of a layer are relative to it."""

    model_type: str
    encoder: str
    """The module that holds embeddings and layers."""
    attention: str
    """The module that splits projections into heads."""
    query: str
    key: str
    value: str
    attention_output: str
    ffn_in: str
    ffn_out: str
    position_offset: int
    """Rows of the position table before that of the first token."""
    head_attributes: bool
    """The forward pass reads the head count from attributes, not from the projections."""
    position_bias: bool
    """All layers share one bias ``[1, heads, query, key]`` that is added to attention scores."""


ARCHITECTURES = {
    "bert": Architecture(
        model_type="bert",
        encoder="bert",
        attention="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        attention_output="attention.output.dense",
        ffn_in="intermediate.dense",
        ffn_out="output.dense",
        position_offset=0,
        head_attributes=False,
        position_bias=False,
    ),
    "mpnet": Architecture(
        model_type="mpnet",
        encoder="mpnet",
        attention="attention.attn",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_output="attention.attn.o",
        ffn_in="intermediate.dense",
        ffn_out="output.dense",
        position_offset=2,
        head_attributes=True,
        position_bias=True,
    ),
}


def architecture_of(model: Any) -> Architecture:
    """The entry for a model, or for anything else that has a ``config``.

    Raises:
        ParamsError: there is none.
    """
    model_type = model.config.model_type
    if model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ParamsError(
            f"teacher: found model_type {model_type!r}, expected one of {known}",
            next_command="stillroom compress --set teacher.source=package",
        )
    return ARCHITECTURES[model_type]


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The transformer layers, in order."""
    layers: nn.ModuleList = encoder_of(model).encoder.layer
    return layers


def encoder_of(model: nn.Module) -> Any:
    """The module that holds embeddings and layers."""
    return model.get_submodule(architecture_of(model).encoder)


def embeddings_of(model: nn.Module) -> Any:
    """The module that holds the word and position tables."""
    return encoder_of(model).embeddings


def linear(layer: nn.Module, name: str) -> nn.Linear:
    """One projection of a layer."""
    module = layer.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def replace(layer: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, child = name.rpartition(".")
    setattr(layer.get_submodule(parent), child, new)
