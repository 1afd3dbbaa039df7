"""Curves of damage: what is measured is the sliced model, and the model is left as it was."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.modeling.architecture import architecture_of, layers_of, linear
from tasks.modeling.checkpoint import clone
from tasks.modeling.surgery import keep_channels, keep_layers
from tasks.pruning.importance import LayerScores, importance
from tasks.pruning.sensitivity import (
    Curve,
    curve,
    divergence,
    narrowed,
    passed_over,
    sensitivity,
)
from tasks.pruning.width import LayerPlan, apply, keep_best
from tests.tiny_models import FFN, HEADS, HIDDEN, KINDS, LAYERS, answer, texts, tiny

WHOLE = LayerPlan(tuple(range(HEADS)), tuple(range(FFN)))


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return tiny(request.param)


def as_batches(model: torch.nn.Module) -> list[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """The three texts in two batches, out of order."""
    ids, mask = texts(model)
    return [(np.array(rows), ids[rows], mask[rows]) for rows in ([2, 0], [1])]


def scores_of(model: torch.nn.Module) -> list[LayerScores]:
    return importance(model, [], method="magnitude", seed=0).layers


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_untouched(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def curves(model: torch.nn.Module) -> Iterator[list[Curve]]:
    reference, batches, before = answer(model).numpy(), as_batches(model), state(model)
    yield sensitivity(model, scores_of(model), lambda m: divergence(m, reference, batches))
    assert_untouched(model, before)


def test_a_point_is_the_damage_of_the_sliced_model(
    model: torch.nn.Module, curves: list[Curve]
) -> None:
    reference, batches, scores = answer(model).numpy(), as_batches(model), scores_of(model)
    assert [(c.layer, c.kind) for c in curves] == [
        (layer, kind) for layer in range(LAYERS) for kind in ("heads", "neurons")
    ]
    head = next(c for c in curves if (c.layer, c.kind) == (1, "heads"))
    assert [kept for kept, _ in head.raw] == [1, 2, 3, 4]
    for kept, damage in head.raw:
        plan = [WHOLE] * LAYERS
        plan[1] = LayerPlan(keep_best(scores[1].heads, kept), WHOLE.neurons)
        sliced = apply(plan, clone(model))
        assert damage == pytest.approx(divergence(sliced, reference, batches), rel=1e-4, abs=1e-9)
    assert head.raw[0][1] > 0


def test_a_layer_passed_over_is_the_model_without_it(model: torch.nn.Module) -> None:
    reference, batches, before = answer(model).numpy(), as_batches(model), state(model)
    found = passed_over(model, lambda m: divergence(m, reference, batches))
    for index, damage in enumerate(found):
        cut = clone(model)
        keep_layers(cut, [layer for layer in range(LAYERS) if layer != index])
        assert damage == pytest.approx(divergence(cut, reference, batches), rel=1e-4, abs=1e-9)
    assert len(found) == LAYERS
    assert max(found) > 0
    assert_untouched(model, before)
    assert answer(model).numpy() == pytest.approx(reference)


def test_channels_are_sliced_off_a_copy_and_the_lowest_go(model: torch.nn.Module) -> None:
    reference, batches, before = answer(model).numpy(), as_batches(model), state(model)
    scores = importance(model, [], method="magnitude", seed=0).channels
    found = narrowed(model, scores, lambda m: divergence(m, reference, batches))
    assert [kept for kept, _ in found] == [8, 16, 24, HIDDEN]
    assert found[-1] == (HIDDEN, 0.0)
    for kept, damage in found[:-1]:
        cut = clone(model)
        keep_channels(cut, keep_best(scores, kept))
        assert damage == pytest.approx(divergence(cut, reference, batches), rel=1e-4, abs=1e-9)
    assert_untouched(model, before)


def test_neurons_are_cut_to_the_shares_and_to_the_least_a_plan_keeps() -> None:
    model = tiny("bert")
    scores = scores_of(model)
    # the layers of `tiny` have fewer neurons than a block, so that there is nothing to cut
    found = sensitivity(model, scores, lambda m: 0.0)
    assert [kept for kept, _ in found[1].raw] == [FFN]
    for layer in layers_of(model):
        layer.intermediate.dense = torch.nn.Linear(HIDDEN, 200)
        layer.output.dense = torch.nn.Linear(200, HIDDEN)
    down, kept_columns = layers_of(model)[0].output.dense.weight, []

    def count(m: torch.nn.Module) -> float:
        kept_columns.append(int((down != 0).any(dim=0).sum()))
        return 0.0

    found = sensitivity(model, scores_of(model), count, shares=(0.75, 0.5, 0.1))
    assert [kept for kept, _ in found[1].raw] == [32, 100, 150, 200]
    assert kept_columns[:7] == [200, 200, 200, 200, 32, 100, 150]  # whole; heads 1, 2, 3; neurons


def test_the_lowest_scored_go_and_a_unit_that_adds_nothing_costs_nothing() -> None:
    model = tiny("mpnet")
    arch, size = architecture_of(model), HIDDEN // HEADS
    output = linear(layers_of(model)[2], arch.attention_output).weight
    output.data[:, 2 * size : 3 * size] = 0
    reference, batches = answer(model).numpy(), as_batches(model)
    found = sensitivity(model, scores_of(model), lambda m: divergence(m, reference, batches))
    heads = found[4]
    assert heads.raw[2][0] == 3
    assert abs(heads.raw[2][1]) < 1e-12
    assert heads.raw[1][1] > 1e-6


def test_damage_is_the_rise_above_the_uncut_loss() -> None:
    model, losses = tiny("bert"), iter([5.0, *[5.5, 4.0, 5.25] * LAYERS])
    found = sensitivity(model, scores_of(model), lambda m: next(losses))
    assert found[0].raw == ((1, 0.5), (2, -1.0), (3, 0.25), (4, 0.0))
    assert found[0].points == ((1, 0.5), (2, 0.125), (3, 0.125), (4, 0.0))


def test_weights_come_back_when_evaluation_fails(model: torch.nn.Module) -> None:
    before, calls = state(model), []

    def fail(m: torch.nn.Module) -> float:
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        sensitivity(model, scores_of(model), fail)
    assert_untouched(model, before)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_refused(loss: float) -> None:
    losses = iter([1.0, 1.0, loss])
    model = tiny("bert")
    with pytest.raises(DataError, match="layer 0 with 2 of 4 heads") as caught:
        sensitivity(model, scores_of(model), lambda m: next(losses))
    assert caught.value.next_command


def test_progress_is_told_layer_by_layer() -> None:
    model, said = tiny("bert"), list[str]()
    sensitivity(model, scores_of(model), lambda m: 0.0, say=said.append)
    assert len(said) == 2 * LAYERS
    assert "layer 2, heads" in said[4]


def test_isotonic_by_hand() -> None:
    # 1 and 2 are out of order and become their mean; below zero is measuring noise
    found = curve(0, "heads", [(3, 2.0), (1, 3.0), (2, 1.0), (5, 0.0), (4, -0.5)])
    assert found.points == ((1, 3.0), (2, 1.5), (3, 1.5), (4, 0.0), (5, 0.0))
    assert found.raw == ((1, 3.0), (2, 1.0), (3, 2.0), (4, -0.5), (5, 0.0))
    assert found.damage(1) == 3.0
    assert found.damage(4) == 0.0
    found = curve(0, "neurons", [(32, 4.0), (64, 1.0), (128, 0.0)])
    assert found.damage(48) == 2.5
    assert found.damage(96) == 0.5
    assert found.damage(16) == 4.0


@given(st.lists(st.floats(-1, 10), min_size=1, max_size=12))
def test_plans_see_curves_that_never_rise(damages: list[float]) -> None:
    raw = [*enumerate(damages, start=1), (len(damages) + 1, 0.0)]
    found = [damage for _, damage in curve(0, "heads", raw).points]
    assert all(a >= b >= 0 for a, b in pairwise(found))
    assert found[-1] == 0
    assert sum(found) == pytest.approx(sum(max(d, 0) for d in damages), abs=1e-6)  # pools keep sums


def test_divergence_is_the_mean_kl_of_torch() -> None:
    model = tiny("bert")
    found = answer(model)
    reference = torch.randn(3, found.shape[1], generator=torch.Generator().manual_seed(4))
    expected = torch.nn.functional.kl_div(
        found.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    measured = divergence(model, reference.numpy(), as_batches(model))
    assert measured == pytest.approx(float(expected), rel=1e-5)
    assert divergence(model, found.numpy(), as_batches(model)) == pytest.approx(0, abs=1e-9)


def test_divergence_by_hand() -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
            return type("Out", (), {"logits": torch.tensor([[1.0, 1.0]])})

    reference = np.array([[math.log(3), 0.0]], dtype=np.float32)  # 3/4 and 1/4 against 1/2, 1/2
    batch = (np.array([0]), torch.ones(1, 2), torch.ones(1, 2))
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert divergence(Fixed(), reference, [batch]) == pytest.approx(expected, rel=1e-6)
