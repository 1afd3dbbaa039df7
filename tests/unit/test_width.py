"""The plan made of saliency: what stays, how many, and over several rounds."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tasks.modeling.checkpoint import clone
from tasks.modeling.surgery import hidden_size, shapes_of
from tasks.pruning.importance import LayerScores, ModelScores, importance
from tasks.pruning.width import (
    CHANNEL_BLOCK,
    WidthPlan,
    _counts,
    apply,
    plan_counts,
    plan_width,
    share_left,
    unit_counts,
)
from tests.tiny_models import CLASSES, FFN, HEADS, HIDDEN, KINDS, LAYERS, PIECES, tiny


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return tiny(request.param)


def answer(model: nn.Module) -> torch.Tensor:
    ids = torch.randint(5, PIECES, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def scores(*neurons: list[float], channels: int = 16) -> ModelScores:
    heads = torch.tensor([3.0, 1.0, 2.0, 0.0])
    layers = [LayerScores(heads, torch.tensor(values)) for values in neurons]
    return ModelScores(layers, torch.arange(channels).float())


def test_the_best_stay() -> None:
    plan = plan_width(scores([1.0, 4.0, 2.0, 3.0]), heads_keep=0.5, ffn_keep=0.5,
                      hidden_keep=0.5, scope="layer", multiple=1)  # fmt: skip
    assert plan.layers[0].heads == (0, 2)
    assert plan.layers[0].neurons == (1, 3)
    assert plan.channels == tuple(range(8, 16))


def test_layers_compete_only_globally() -> None:
    uneven = scores([10.0, 9.0, 8.0, 7.0], [1.0, 2.0, 3.0, 4.0])
    even = plan_width(uneven, heads_keep=1, ffn_keep=0.5, scope="layer", multiple=1)
    free = plan_width(uneven, heads_keep=1, ffn_keep=0.5, scope="global", multiple=1)
    assert [len(layer.neurons) for layer in even.layers] == [2, 2]
    assert [len(layer.neurons) for layer in free.layers] == [4, 1]  # and no layer is left empty
    dead = scores([3.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0])  # more than are to go are worth 0
    cut = plan_width(dead, heads_keep=1, ffn_keep=0.5, scope="global", multiple=1)
    assert [layer.neurons for layer in cut.layers] == [(0, 1), (0, 1)]


@given(
    st.lists(
        st.lists(st.floats(0, 1), min_size=8, max_size=8).map(torch.tensor),
        min_size=LAYERS, max_size=LAYERS,
    ),
    st.floats(0.01, 1), st.floats(0.01, 1), st.sampled_from(["layer", "global"]),
    st.sampled_from([1, 4]),
)  # fmt: skip
def test_any_plan_is_sound(
    values: list[torch.Tensor], heads_keep: float, ffn_keep: float, scope: str, multiple: int
) -> None:
    given_scores = ModelScores([LayerScores(v, v) for v in values], torch.rand(16))
    plan = plan_width(given_scores, heads_keep=heads_keep, ffn_keep=ffn_keep, scope=scope,
                      multiple=multiple)  # fmt: skip
    assert plan.channels is None
    for layer, value in zip(plan.layers, values, strict=True):
        assert 1 <= len(layer.heads) <= 8
        assert multiple <= len(layer.neurons) <= 8
        assert len(layer.neurons) % multiple == 0
        for kept in (layer.heads, layer.neurons):
            assert list(kept) == sorted(set(kept))
            gone = set(range(8)) - set(kept)
            assert not gone or min(value[list(kept)]) >= max(value[list(gone)])


@pytest.mark.parametrize(
    ("channels", "share", "kept"),
    [(384, 0.5, 192), (384, 0.33, 128), (384, 0.49, 192), (384, 0.001, 8), (12, 0.9, 8),
     (6, 0.5, 6), (384, 0.999, 384)],
)  # fmt: skip
def test_channels_are_rounded_to_blocks(channels: int, share: float, kept: int) -> None:
    plan = plan_width(scores([1.0], channels=channels), heads_keep=1, ffn_keep=1,
                      hidden_keep=share, scope="layer")  # fmt: skip
    assert plan.channels == tuple(range(channels - kept, channels))


def test_a_plan_is_applied_to_uneven_layers(model: nn.Module) -> None:
    first = plan_width(importance(model, [], method="magnitude", seed=0), heads_keep=0.5,
                       ffn_keep=0.4, scope="global", multiple=1)  # fmt: skip
    cut = apply(first, clone(model))
    kept = [(len(shape.heads), shape.ffn) for shape in shapes_of(cut)]
    assert kept == [(len(layer.heads), len(layer.neurons)) for layer in first.layers]
    assert len(set(kept)) > 1
    second = plan_width(importance(cut, [], method="magnitude", seed=0), heads_keep=0.7,
                        ffn_keep=0.7, hidden_keep=0.5, scope="global", multiple=1)  # fmt: skip
    apply(second, cut)
    assert hidden_size(cut) == HIDDEN // 2
    kept = [(len(shape.heads), shape.ffn) for shape in shapes_of(cut)]
    assert kept == [(len(layer.heads), len(layer.neurons)) for layer in second.layers]
    assert torch.isfinite(answer(cut)).all()


def test_a_plan_that_keeps_all_changes_nothing(model: nn.Module) -> None:
    found = importance(model, [], method="random", seed=0)
    plan = plan_width(found, heads_keep=1, ffn_keep=1, hidden_keep=1, scope="layer")
    expected = answer(model)
    assert plan.channels is None
    torch.testing.assert_close(answer(apply(plan, clone(model))), expected, atol=0, rtol=0)
    everything = WidthPlan(plan.layers, tuple(range(HIDDEN)))
    torch.testing.assert_close(answer(apply(everything, clone(model))), expected, atol=0, rtol=0)
    assert expected.shape == (3, CLASSES)


# rounds


@given(st.floats(0.01, 1), st.integers(1, 50))
def test_shares_are_geometric_and_end_at_the_target(keep: float, rounds: int) -> None:
    left = [share_left(keep, round, rounds) for round in range(rounds + 1)]
    assert left[0] == 1
    assert left[-1] == keep
    assert left == sorted(left, reverse=True)
    for before, after in pairwise(left):
        assert after / before == pytest.approx(keep ** (1 / rounds))


@given(
    st.integers(1, 16), st.integers(1, 300), st.integers(1, 100),
    st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0.05, 1),
    st.integers(1, 6), st.integers(0, 99),
)  # fmt: skip
def test_rounds_end_at_the_counts_of_a_single_shot(
    heads: int, neurons: int, channels: int, heads_keep: float, ffn_keep: float,
    hidden_keep: float, rounds: int, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)

    def drawn(heads: int, neurons: int, channels: int) -> ModelScores:
        return ModelScores([LayerScores(torch.rand(heads), torch.rand(neurons))] * 2,
                           torch.rand(channels))  # fmt: skip

    def sizes(plan: WidthPlan, before: int) -> tuple[int, int, int]:
        [layer, _] = plan.layers
        kept = before if plan.channels is None else len(plan.channels)
        return len(layer.heads), len(layer.neurons), kept

    whole = drawn(heads, neurons, channels)
    once = plan_width(whole, heads_keep=heads_keep, ffn_keep=ffn_keep, hidden_keep=hidden_keep,
                      scope="layer")  # fmt: skip
    present = [(heads, neurons, channels)]
    for round in range(1, rounds + 1):
        plan = plan_width(
            drawn(*present[-1]),
            heads_keep=share_left(heads_keep, round, rounds),
            ffn_keep=share_left(ffn_keep, round, rounds),
            hidden_keep=share_left(hidden_keep, round, rounds),
            scope="layer",
            original=unit_counts(whole),
        )
        present.append(sizes(plan, present[-1][2]))
    assert present[-1] == sizes(once, channels)
    for before, after in pairwise(present):
        assert all(a <= b for a, b in zip(after, before, strict=True))


def test_global_rounds_rank_the_original_number_of_units() -> None:
    whole = scores(list(range(8)), list(range(8, 16)))
    original = unit_counts(whole)
    plan = plan_width(whole, heads_keep=1, ffn_keep=0.75, scope="global", multiple=1)
    assert [len(layer.neurons) for layer in plan.layers] == [4, 8]
    left = scores(*[[float(n) for n in layer.neurons] for layer in plan.layers])
    half = plan_width(left, heads_keep=1, ffn_keep=0.5, scope="global", multiple=1,
                      original=original)  # fmt: skip
    assert sum(len(layer.neurons) for layer in half.layers) == 8
    all_of_it = plan_width(left, heads_keep=1, ffn_keep=1, scope="global", multiple=1,
                           original=original)  # fmt: skip
    assert [len(layer.neurons) for layer in all_of_it.layers] == [4, 8]


def test_rounds_on_a_model(model: nn.Module) -> None:
    cut = clone(model)
    original = unit_counts(importance(cut, [], method="magnitude", seed=0))
    assert original.heads == (HEADS,) * LAYERS
    assert original.neurons == (FFN,) * LAYERS
    for round in (1, 2, 3):
        found = importance(cut, [], method="magnitude", seed=0)
        keep = share_left(0.25, round, 3)
        apply(plan_width(found, heads_keep=keep, ffn_keep=keep, hidden_keep=keep, scope="layer",
                         multiple=2, original=original), cut)  # fmt: skip
    assert [(len(shape.heads), shape.ffn) for shape in shapes_of(cut)] == [(1, 6)] * LAYERS
    assert hidden_size(cut) == CHANNEL_BLOCK
    assert torch.isfinite(answer(cut)).all()


def test_counts_on_the_way_to_a_goal() -> None:
    """Of 4 heads and 16 neurons to 1 and 4: after one of two rounds half of each."""
    made = ModelScores(
        [LayerScores(torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.arange(16.0))], torch.ones(8)
    )
    original = unit_counts(made)
    first = plan_counts(made, original, [(1, 4)], 1, 2)
    assert first.layers[0].heads == (0, 2)
    assert first.layers[0].neurons == tuple(range(8, 16))
    last = plan_counts(made, original, [(1, 4)], 2, 2)
    assert (last.layers[0].heads, last.layers[0].neurons) == ((0,), (12, 13, 14, 15))
    assert last.channels is None


def test_all_is_kept_though_it_is_no_multiple() -> None:
    scores = [torch.rand(400), torch.rand(200)]
    for scope in ("layer", "global"):
        assert _counts(scores, [400, 200], 1.0, scope, multiple=32) == [400, 200]
    assert _counts(scores, [400, 200], 0.5, "layer", multiple=32) == [192, 96]
