"""Saliency and the plan made of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.modeling.architecture import architecture_of, layers_of, linear
from tasks.modeling.checkpoint import clone
from tasks.pruning.importance import LayerScores, activation_rms, importance
from tasks.pruning.width import plan_width
from tests.unit.test_surgery import FFN, HEADS, HIDDEN, LAYERS, texts, tiny


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny("bert")


def test_activation_is_the_rms_over_real_tokens(model: torch.nn.Module) -> None:
    ids, mask = texts(model)
    seen: list[torch.Tensor] = []
    down = linear(layers_of(model)[1], architecture_of(model).ffn_out)
    handle = down.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    batches = [(ids[:2], mask[:2]), (ids[2:], mask[2:])]
    rms = activation_rms(model, batches)
    handle.remove()
    real = torch.cat([x[m.bool()] for x, (_, m) in zip(seen, batches, strict=True)])
    torch.testing.assert_close(rms[1][1], real.square().mean(0).sqrt())


def test_a_unit_that_adds_nothing_scores_nothing(model: torch.nn.Module) -> None:
    dead = clone(model)
    arch, layer = architecture_of(dead), layers_of(dead)[2]
    linear(layer, arch.ffn_out).weight.data[:, 5] = 0
    size = HIDDEN // HEADS
    linear(layer, arch.attention_output).weight.data[:, 2 * size : 3 * size] = 0
    for method in ("activation", "magnitude"):
        scores = importance(dead, [texts(dead)], method=method, seed=0)[2]
        assert scores.neurons[5] == 0
        assert scores.heads[2] == 0
        assert (scores.neurons > 0).sum() == FFN - 1
        assert (scores.heads > 0).sum() == HEADS - 1


def test_magnitude_by_hand(model: torch.nn.Module) -> None:
    scores = importance(model, [], method="magnitude", seed=0)
    weight = linear(layers_of(model)[0], architecture_of(model).attention_output).weight
    size = HIDDEN // HEADS
    torch.testing.assert_close(scores[0].heads[1], weight[:, size : 2 * size].norm())


def test_random_is_a_function_of_the_seed(model: torch.nn.Module) -> None:
    one, same, other = (importance(model, [], method="random", seed=s) for s in (3, 3, 4))
    assert torch.equal(one[1].neurons, same[1].neurons)
    assert not torch.equal(one[1].neurons, other[1].neurons)


def scores(*neurons: list[float]) -> list[LayerScores]:
    return [LayerScores(torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor(n)) for n in neurons]


def test_the_best_stay() -> None:
    plan = plan_width(scores([1.0, 4.0, 2.0, 3.0]), heads_keep=0.5, ffn_keep=0.5,
                      scope="layer", multiple=1)  # fmt: skip
    assert plan[0].heads == (0, 2)
    assert plan[0].neurons == (1, 3)


def test_layers_compete_only_globally() -> None:
    uneven = scores([10.0, 9.0, 8.0, 7.0], [1.0, 2.0, 3.0, 4.0])
    even = plan_width(uneven, heads_keep=1, ffn_keep=0.5, scope="layer", multiple=1)
    free = plan_width(uneven, heads_keep=1, ffn_keep=0.5, scope="global", multiple=1)
    assert [len(layer.neurons) for layer in even] == [2, 2]
    assert [len(layer.neurons) for layer in free] == [4, 1]  # and no layer is left empty


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
    plan = plan_width([LayerScores(v, v) for v in values], heads_keep=heads_keep,
                      ffn_keep=ffn_keep, scope=scope, multiple=multiple)  # fmt: skip
    for layer, value in zip(plan, values, strict=True):
        assert 1 <= len(layer.heads) <= 8
        assert multiple <= len(layer.neurons) <= 8
        assert len(layer.neurons) % multiple == 0
        for kept in (layer.heads, layer.neurons):
            assert list(kept) == sorted(set(kept))
            gone = set(range(8)) - set(kept)
            assert not gone or min(value[list(kept)]) >= max(value[list(gone)])
