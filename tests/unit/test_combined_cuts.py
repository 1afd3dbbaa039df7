"""Cuts of every kind in any order: what is left is the full model with the rest masked."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.errors import ParamsError
from tasks.modeling.architecture import (
    architecture_of,
    embeddings_of,
    encoder_of,
    layers_of,
    linear,
    replace,
    words_of,
)
from tasks.modeling.checkpoint import clone, load_checkpoint, parameters, save_checkpoint
from tasks.modeling.surgery import (
    LayerShape,
    factorise_embeddings,
    head_size,
    hidden_size,
    keep_channels,
    keep_heads,
    keep_layers,
    keep_neurons,
    keep_pooled,
    keep_positions,
    keep_vocabulary,
    model_shape_of,
    shapes_of,
)
from tests.tiny_models import FFN, HEADS, HIDDEN, KINDS, LAYERS, PIECES, tiny

CUTS = ("heads", "neurons", "channels", "pooled", "layers", "rank", "vocabulary", "positions")
SOME_CUT = st.tuples(st.sampled_from(CUTS), st.integers(0, 2**16))
LENGTH = 9


class KeptNorm(nn.Module):
    """A norm whose statistics are of some channels, and whose other outputs are zero."""

    def __init__(self, norm: Any, channels: list[int]) -> None:
        super().__init__()
        self.norm, self.channels = norm, channels

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        kept, weight = states[..., self.channels], self.norm.weight[self.channels]
        out = torch.zeros_like(states)
        if isinstance(self.norm, nn.LayerNorm):
            centred = kept - kept.mean(-1, keepdim=True)
            scale = (centred.square().mean(-1, keepdim=True) + self.norm.eps).rsqrt()
            out[..., self.channels] = centred * scale * weight + self.norm.bias[self.channels]
        else:
            scale = (kept.square().mean(-1, keepdim=True) + self.norm.variance_epsilon).rsqrt()
            out[..., self.channels] = kept * scale * weight
        return out


@dataclass
class Masked:
    """What is left of a full model, by original index, and its word table as it now is."""

    full: nn.Module
    layers: list[int]
    heads: list[list[int]]
    neurons: list[list[int]]
    channels: list[int]
    pooled: list[int]
    pieces: list[int]
    words: np.ndarray

    @classmethod
    def of(cls, full: nn.Module) -> Masked:
        inner = architecture_of(full).head[0]
        return cls(
            full, list(range(LAYERS)), [list(range(HEADS))] * LAYERS, [list(range(FFN))] * LAYERS,
            list(range(HIDDEN)), list(range(linear(full, inner).out_features)),
            list(range(PIECES)), words_of(full).weight.detach().double().numpy(),
        )  # fmt: skip

    def model(self) -> nn.Module:
        """The full model; all that is gone is zero and counts in no norm."""
        arch, copy = architecture_of(self.full), clone(self.full)
        gone = sorted(set(range(HIDDEN)) - set(self.channels))
        words = words_of(copy).weight.data.zero_()
        words[np.ix_(self.pieces, self.channels)] = torch.from_numpy(self.words).float()
        for name in arch.tables:
            embeddings_of(copy).get_submodule(name).weight.data[:, gone] = 0
        for index, layer in enumerate(layers_of(copy)):
            self._mask_layer(index, layer)
        encoder = encoder_of(copy)
        replace(encoder, arch.norm, KeptNorm(encoder.get_submodule(arch.norm), self.channels))
        replace(encoder, arch.layers, nn.ModuleList(layers_of(copy)[i] for i in self.layers))
        copy.config.num_hidden_layers = len(self.layers)
        if len(arch.head) > 1:
            outer = linear(copy, arch.head[1])
            outer.weight.data[:, sorted(set(range(outer.in_features)) - set(self.pooled))] = 0
        return copy

    def _mask_layer(self, index: int, layer: nn.Module) -> None:
        arch = architecture_of(self.full)
        output, down = linear(layer, arch.attention_output), linear(layer, arch.ffn_out)
        size = output.in_features // HEADS
        for head in set(range(HEADS)) - set(self.heads[index]):
            output.weight.data[:, head * size : (head + 1) * size] = 0
        down.weight.data[:, sorted(set(range(FFN)) - set(self.neurons[index]))] = 0
        gone = sorted(set(range(HIDDEN)) - set(self.channels))
        for projection in (output, down):
            projection.weight.data[gone] = 0
            if projection.bias is not None:
                projection.bias.data[gone] = 0
        for name in arch.norms:
            replace(layer, name, KeptNorm(layer.get_submodule(name), self.channels))


def cut_once(kind: str, seed: int, model: nn.Module, masked: Masked) -> None:
    """Cut a model and say the same to its masked form."""
    rng = random.Random(seed)
    index = rng.randrange(len(masked.layers))
    layer = masked.layers[index]

    def some(of: list[int], least: int = 1) -> tuple[list[int], list[int]]:
        """Positions that stay, and what stands there."""
        count = rng.randint(min(least, len(of)), len(of))
        keep = sorted(rng.sample(range(len(of)), count))
        return keep, [of[i] for i in keep]

    if kind == "heads":
        keep, masked.heads[layer] = some(masked.heads[layer])
        keep_heads(model, index, keep)
    elif kind == "neurons":
        keep, masked.neurons[layer] = some(masked.neurons[layer])
        keep_neurons(model, index, keep)
    elif kind == "channels":  # of two, a norm makes signs, and rounding would turn them
        keep, masked.channels = some(masked.channels, 4)
        keep_channels(model, keep)
        masked.words = masked.words[:, keep]
    elif kind == "pooled" and len(architecture_of(model).head) > 1:
        keep, masked.pooled = some(masked.pooled)
        keep_pooled(model, keep)
    elif kind == "layers":
        keep, masked.layers = some(masked.layers)
        keep_layers(model, keep)
    elif kind == "rank":
        rank = rng.randint(1, len(masked.channels))
        factorise_embeddings(model, rank)
        u, s, v = np.linalg.svd(masked.words, full_matrices=False)
        masked.words = (u[:, :rank] * s[:rank]) @ v[:rank]
    elif kind == "vocabulary":  # special pieces come first, as in real tables
        keep = [0, 1, *(2 + i for i in some(masked.pieces[2:])[0])]
        masked.pieces = [masked.pieces[i] for i in keep]
        keep_vocabulary(model, keep, pad=model.config.pad_token_id)
        masked.words = masked.words[keep]
    elif kind == "positions":
        keep_positions(model, rng.randint(LENGTH, longest_text(model)))


def longest_text(model: nn.Module) -> int:
    """Pieces of the longest text that the positions left are enough for."""
    first = (
        embeddings_of(model).padding_idx + 1
        if architecture_of(model).positions_after_padding
        else 0
    )
    return int(model.config.max_position_embeddings) - first


def answers(model: nn.Module, masked: Masked) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the cut and of the masked model for the same texts, one of them padded."""
    pad_id: Any = model.config.pad_token_id
    ids = torch.randint(2, len(masked.pieces), (3, LENGTH), generator=torch.Generator())
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = pad_id, 0
    original = torch.tensor(masked.pieces)[ids]
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=mask).logits
        return found, masked.model()(input_ids=original, attention_mask=mask).logits


@pytest.fixture(scope="module", params=KINDS)
def full(request: pytest.FixtureRequest) -> nn.Module:
    return tiny(request.param)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(SOME_CUT, min_size=2, max_size=9))
def test_any_cuts_in_any_order_are_the_masked_model_and_reload(
    full: nn.Module, tmp_path: Path, cuts: list[tuple[str, int]]
) -> None:
    model, masked = clone(full), Masked.of(full)
    for kind, seed in cuts:
        cut_once(kind, seed, model, masked)
    found, expected = answers(model, masked)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert model_shape_of(model).channels == tuple(masked.channels)
    assert shapes_of(model) == tuple(
        LayerShape(tuple(masked.heads[i]), len(masked.neurons[i])) for i in masked.layers
    )
    (tmp_path / "tokenizer.json").write_text("{}")
    save_checkpoint(model, tmp_path / "saved", parent=tmp_path, step={"stage": "prune"})
    reloaded = load_checkpoint(tmp_path / "saved")
    assert (shapes_of(reloaded), model_shape_of(reloaded)) == (
        shapes_of(model), model_shape_of(model)
    )  # fmt: skip
    torch.testing.assert_close(answers(reloaded, masked)[0], found, atol=0, rtol=0)


@pytest.mark.parametrize("kind", CUTS)
def test_each_cut_alone_makes_the_model_smaller(full: nn.Module, kind: str) -> None:
    model, masked = clone(full), Masked.of(full)
    cut_once(kind, 5, model, masked)
    nothing_to_cut = {"pooled": len(architecture_of(full).head) < 2,
                      "positions": not architecture_of(full).tables}  # fmt: skip
    if nothing_to_cut.get(kind):
        assert parameters(model) == parameters(full)
    else:
        assert parameters(model) < parameters(full)
    torch.testing.assert_close(*answers(model, masked), atol=1e-5, rtol=1e-4)


def test_sizes_are_those_that_are_left(full: nn.Module) -> None:
    model = clone(full)
    size = head_size(model)
    keep_channels(model, range(0, HIDDEN, 2))
    keep_heads(model, 0, [1])
    assert hidden_size(model) == HIDDEN // 2
    assert head_size(model) == size  # and not hidden_size // heads
    output = linear(layers_of(model)[0], architecture_of(model).attention_output)
    assert output.weight.shape == (HIDDEN // 2, size)


def test_a_full_rank_is_the_table_itself(full: nn.Module) -> None:
    model = clone(full)
    factorise_embeddings(model, HIDDEN)
    torch.testing.assert_close(*answers(model, Masked.of(full)), atol=1e-5, rtol=1e-4)
    assert words_of(model).padding_idx == words_of(full).padding_idx


def test_a_rank_that_is_none_is_refused(full: nn.Module) -> None:
    model = clone(full)
    keep_channels(model, range(10))
    for rank in (0, 11):
        with pytest.raises(ParamsError, match=rf"embedding_rank: found {rank}, expected 1 to 10"):
            factorise_embeddings(model, rank)


def test_a_padding_piece_that_positions_count_from_does_not_move(full: nn.Module) -> None:
    keep = [2, 0, 1, *range(5, PIECES)]
    pad = keep.index(full.config.pad_token_id)
    if architecture_of(full).positions_after_padding:
        with pytest.raises(ParamsError, match=r"padding piece in row 2, expected 1"):
            keep_vocabulary(clone(full), keep, pad=pad)
    else:
        keep_vocabulary(model := clone(full), keep, pad=pad)
        assert model.config.pad_token_id == 1
