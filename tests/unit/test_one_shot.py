"""Wanda and SparseGPT: by hand, against an independent dense reference, and in real models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.errors import DataError, ParamsError
from tasks.modeling.architecture import architecture_of, layers_of, linear
from tasks.modeling.checkpoint import clone
from tasks.pruning.one_shot import sparsegpt, sparsegpt_weight, wanda, wanda_mask
from tasks.pruning.sparsity import magnitude_masks, matrices, shares, sparsity_of
from tests.tiny_models import FFN, HIDDEN, KINDS, LAYERS, PIECES, tiny

WEIGHT = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.5, 6.0, -0.1, 0.2]])
INPUTS = torch.tensor([[3.0, 1.0, 0.0, 0.0], [4.0, 0.0, 1.0, -2.0]])  # two tokens
METHODS = {"wanda": wanda, "sparsegpt": sparsegpt}


@pytest.mark.parametrize("pattern", ["unstructured", "2of4"])
def test_wanda_by_hand(pattern: Any) -> None:
    """Norms 5, 1, 1, 2: scores 5, 2, 3, 8 and 2.5, 6, 0.1, 0.4; by magnitude 3 and 4 stayed."""
    norms = INPUTS.norm(dim=0)
    assert norms.tolist() == [5, 1, 1, 2]
    keep = wanda_mask(WEIGHT, norms, target=0.5, pattern=pattern)
    assert keep.int().tolist() == [[1, 0, 0, 1], [1, 1, 0, 0]]


def test_wanda_compares_within_a_row() -> None:
    """All of the second row's scores are below all of the first's, and yet half of each goes."""
    weight = torch.stack([WEIGHT[0], WEIGHT[1] / 100])
    keep = wanda_mask(weight, torch.ones(4), target=0.5, pattern="unstructured")
    assert keep.sum(dim=1).tolist() == [2, 2]


def test_one_weight_makes_up_for_another_by_hand() -> None:
    """H = [[2, 1], [1, 1]], w = (1, 3): H⁻¹ = [[1, -1], [-1, 2]], so that of the saliencies 1 / 1
    and 9 / 1 the first goes and 1 / 1 · (-1) is taken from the second: 4.
    """
    hessian = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    pruned = sparsegpt_weight(
        torch.tensor([[1.0, 3.0]]), hessian, target=0.5, pattern="unstructured", damping=0, block=2
    )
    torch.testing.assert_close(pruned, torch.tensor([[0.0, 4.0]]))


def correlated(inputs: int, tokens: int, seed: int) -> np.ndarray:
    """Features ``[inputs, tokens]`` that are mixtures of fewer, of unequal size."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(inputs, inputs // 2)) @ rng.normal(size=(inputs // 2, tokens))
    return (mixed + 0.3 * rng.normal(size=mixed.shape)) * rng.lognormal(0, 0.7, (inputs, 1))


def reference(
    weight: np.ndarray, hessian: np.ndarray, target: float, pattern: str, block: int
) -> np.ndarray:
    """Optimal brain surgery from left to right, inverting what is left of H at every column.

    No factorisation and no block update: each pruned weight is made up for at once, in all
    columns to its right.
    """
    weight = weight.copy()
    rows, columns = weight.shape
    keep = np.ones(weight.shape, dtype=bool)
    saliency = [np.linalg.inv(hessian[c:, c:])[0, 0] for c in range(columns)]
    span = 4 if pattern == "2of4" else block
    for column in range(columns):
        inverse = np.linalg.inv(hessian[column:, column:])
        if column % span == 0:
            end = min(column + span, columns)
            scores = weight[:, column:end] ** 2 / saliency[column:end]
            if pattern == "2of4":
                for row, score in enumerate(scores):
                    keep[row, column + np.argsort(score)[:2]] = False
            else:
                count = round(target * rows * end) - round(target * rows * column)
                gone = np.argsort(scores.ravel())[:count]
                keep[gone // scores.shape[1], column + gone % scores.shape[1]] = False
        for row in np.flatnonzero(~keep[:, column]).tolist():
            step = weight[row, column] / inverse[0, 0]
            weight[row, column:] -= step * inverse[0]
            weight[row, column] = 0.0
    return weight


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 6),
    columns=st.sampled_from([4, 8, 12, 20]),
    target=st.floats(0, 0.95),
    block=st.sampled_from([4, 8, 128]),
    pattern=st.sampled_from(["unstructured", "2of4"]),
)
def test_sparsegpt_agrees_with_explicit_inverses(
    seed: int, rows: int, columns: int, target: float, block: int, pattern: Any
) -> None:
    x = correlated(columns, 60, seed)
    weight = np.random.default_rng(seed).normal(size=(rows, columns))
    hessian = 2 * x @ x.T
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(columns)
    expected = reference(weight, damped, target, pattern, block)
    found = sparsegpt_weight(
        torch.from_numpy(weight), torch.from_numpy(hessian),
        target=target, pattern=pattern, damping=0.01, block=block,
    ).numpy()  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-8, rtol=1e-6)
    zeros = weight.size // 2 if pattern == "2of4" else round(target * weight.size)
    assert (found == 0).sum() == zeros


def test_what_is_right_of_the_pruned_columns_is_the_least_squares_solution() -> None:
    """Where only the first columns go, one after the other, no better fit is possible."""
    x = correlated(12, 80, seed=4)
    weight = np.random.default_rng(0).normal(size=(5, 12))
    weight[:, :4] *= 1e-3
    found = sparsegpt_weight(
        torch.from_numpy(weight), torch.from_numpy(2 * x @ x.T),
        target=4 / 12, pattern="unstructured", damping=0.0, block=12,
    ).numpy()  # fmt: skip
    assert (found[:, :4] == 0).all()
    best = np.linalg.lstsq(x[4:].T, (weight @ x).T, rcond=None)[0].T
    np.testing.assert_allclose(found[:, 4:], best, rtol=1e-8)


@pytest.mark.parametrize(("target", "pattern"), [(0.5, "2of4"), (0.5, "unstructured"),
                                                 (0.8, "unstructured")])  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_sparsegpt_errs_least_on_correlated_inputs(target: float, pattern: Any, seed: int) -> None:
    x = torch.from_numpy(correlated(64, 400, seed))
    weight = torch.from_numpy(np.random.default_rng(seed).normal(size=(48, 64)))
    module = nn.Linear(64, 48)
    module.weight.data = weight
    mask = magnitude_masks({"w": module}, target, scope="layer", pattern=pattern)["w"]
    active = wanda_mask(weight, x.norm(dim=1), target=target, pattern=pattern)
    solved = sparsegpt_weight(
        weight, 2 * x @ x.T, target=target, pattern=pattern, damping=0.01, block=16
    )
    by_magnitude, by_wanda, by_sparsegpt = (
        float(((weight - pruned) @ x).norm()) for pruned in (weight * mask, weight * active, solved)
    )
    assert by_sparsegpt < by_wanda < by_magnitude


def calibration(padding: int = 7) -> list[tuple[torch.Tensor, ...]]:
    """Two batches of 12 texts with labels, padded on the right with the given piece."""
    generator = torch.Generator().manual_seed(2)
    batches: list[tuple[torch.Tensor, ...]] = []
    for _ in range(2):
        ids = torch.randint(5, PIECES, (12, 9), generator=generator)
        lengths = torch.randint(3, 10, (12, 1), generator=generator)
        mask = (torch.arange(9) < lengths).long()
        batches.append((ids.where(mask.bool(), torch.tensor(padding)), mask, torch.zeros(12)))
    return batches


def inputs_of(model: nn.Module, batches: list[tuple[torch.Tensor, ...]]) -> dict[str, torch.Tensor]:
    """What enters each matrix at the real tokens, ``[tokens, inputs]``, in whole forward passes."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in matrices(model)}
    for ids, mask, *_ in batches:
        handles = [
            module.register_forward_pre_hook(
                lambda _, args, name=name, mask=mask: seen[name].append(args[0][mask.bool()])
            )
            for name, module in matrices(model).items()
        ]
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_pruned_in_order_from_what_the_pruned_ones_give(kind: str, method: str) -> None:
    dense = tiny(kind)
    model, batches = clone(dense), calibration()
    found = METHODS[method](model, lambda: batches, target=0.6, pattern="unstructured")
    mixed = clone(dense)  # pruned up to, but not including, the layer in question
    for index in range(len(layers_of(dense))):
        inputs = inputs_of(mixed, batches)
        layer = set(layers_of(mixed)[index].modules())
        for name, module in matrices(mixed).items():
            if module not in layer:
                continue
            x, weight = inputs[name], module.weight.detach()
            if method == "wanda":
                keep = wanda_mask(weight, x.norm(dim=0), target=0.6, pattern="unstructured")
                expected = weight * keep
            else:
                expected = sparsegpt_weight(weight, 2 * x.T @ x, target=0.6, damping=0.01,
                                            pattern="unstructured", block=128)  # fmt: skip
            pruned = matrices(model)[name].weight.detach()
            agree = (pruned == 0) == (expected == 0)
            assert agree.float().mean() > 0.995, name  # sums in another order may swap a tie
            rows = agree.all(dim=1)
            assert rows.float().mean() > 0.8
            torch.testing.assert_close(pruned[rows], expected[rows], atol=2e-4, rtol=1e-3)
        layers_of(mixed)[index].load_state_dict(layers_of(model)[index].state_dict())
    assert found == shares(model)
    assert all(abs(share - 0.6) < 0.001 for share in found.values())


@pytest.mark.parametrize("method", METHODS)
def test_what_stands_at_padding_does_not_count(method: str) -> None:
    one, other = tiny("bert"), tiny("bert")
    METHODS[method](one, lambda: calibration(), target=0.5, pattern="unstructured")
    METHODS[method](other, lambda: calibration(padding=31), target=0.5, pattern="unstructured")
    for name, module in matrices(one).items():
        torch.testing.assert_close(matrices(other)[name].weight, module.weight, atol=0, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_two_of_four_in_a_model(method: str) -> None:
    model = tiny("mpnet").train()
    rest = {k: v.clone() for k, v in model.state_dict().items()
            if k.removesuffix(".weight") not in matrices(model)}  # fmt: skip
    METHODS[method](model, lambda: calibration(), target=0.5, pattern="2of4")
    assert sparsity_of(model) == 0.5
    for module in matrices(model).values():
        assert ((module.weight != 0).reshape(-1, 4).sum(1) == 2).all()
        assert module.weight.requires_grad
    assert model.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in rest.items())


@pytest.mark.parametrize("method", METHODS)
def test_one_pass_a_layer_that_ends_at_the_layer(method: str) -> None:
    model, passes = tiny("bert"), 0
    ran = [0] * LAYERS

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        nonlocal passes
        passes += 1
        yield from calibration()

    arch = architecture_of(model)
    for index, layer in enumerate(layers_of(model)):

        def count(*_: Any, index: int = index) -> None:
            ran[index] += 1

        linear(layer, arch.ffn_out).register_forward_pre_hook(count)  # fmt: skip
    METHODS[method](model, batches, target=0.5, pattern="unstructured")
    assert passes == LAYERS
    assert ran == [6, 4, 2], "two batches a pass; the third layer runs in the third pass alone"


def test_sparsegpt_keeps_a_models_answers_best() -> None:
    dense = tiny("bert")
    batches = calibration()
    pruned = {name: clone(dense) for name in (*METHODS, "magnitude")}
    for name, method in METHODS.items():
        method(pruned[name], lambda: batches, target=0.6, pattern="unstructured")
    chosen = matrices(pruned["magnitude"])
    masks = magnitude_masks(chosen, 0.6, scope="layer", pattern="unstructured")
    for name, module in chosen.items():
        module.weight.data *= masks[name]

    def states(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            out = [model(input_ids=i, attention_mask=m, output_hidden_states=True).hidden_states[1]
                   [m.bool()] for i, m, *_ in batches]  # fmt: skip
        return torch.cat(out)

    error = {name: float((states(m) - states(dense)).norm()) for name, m in pruned.items()}
    assert error["sparsegpt"] < min(error["wanda"], error["magnitude"])


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_touched_when_it_cannot_be_done(method: str) -> None:
    model = tiny("bert")
    down = linear(layers_of(model)[2], architecture_of(model).ffn_out)
    before = {name: m.weight.clone() for name, m in matrices(model).items()}
    with pytest.raises(ParamsError, match=r"found 0\.9, expected 0\.5"):
        METHODS[method](model, lambda: calibration(), target=0.9, pattern="2of4")
    with pytest.raises(DataError, match="found no token"):
        METHODS[method](model, lambda: [], target=0.5, pattern="unstructured")
    down.in_features = FFN - 2  # in the last layer: found before the first is pruned
    with pytest.raises(ParamsError, match=rf"2of4 with {FFN - 2} inputs in bert\.encoder"):
        METHODS[method](model, lambda: calibration(), target=0.5, pattern="2of4")
    assert all(torch.equal(m.weight, before[name]) for name, m in matrices(model).items())


def test_a_singular_hessian_is_refused() -> None:
    with pytest.raises(DataError, match=f"Hessian of {HIDDEN} inputs cannot be inverted"):
        sparsegpt_weight(torch.ones(2, HIDDEN), torch.zeros(HIDDEN, HIDDEN), target=0.5,
                         pattern="unstructured", damping=0.01, block=128)  # fmt: skip
