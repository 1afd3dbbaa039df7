"""Masks by magnitude, the cubic schedule, and the callbacks in a real training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from tasks.errors import ParamsError
from tasks.modeling.architecture import layers_of
from tasks.modeling.checkpoint import clone
from tasks.pruning.sparsity import (
    GradualMagnitude,
    KeepZeros,
    apply_masks,
    cubic_sparsity,
    magnitude_masks,
    matrices,
    nonzero,
    shared_out,
    shares,
    sparsity_of,
    two_of_four,
)
from tests.tiny_models import FFN, HIDDEN, KINDS, LAYERS, PIECES, tiny

HAND = [[1.0, -2.0, 3.0, -4.0], [0.5, 6.0, -0.1, 0.2]]


def linear_of(weight: Any) -> nn.Linear:
    tensor = torch.as_tensor(weight, dtype=torch.float32)
    module = nn.Linear(tensor.shape[1], tensor.shape[0])
    module.weight.data = tensor.clone()
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_the_layers_linears_alone(kind: str) -> None:
    model = tiny(kind)
    chosen = matrices(model)
    state = model.state_dict()
    assert all(state[f"{name}.weight"] is not None for name in chosen)
    apart = ("classifier", "pooler", "embed", "score")
    assert not any(word in name for name in chosen for word in apart)
    inside = [m for layer in layers_of(model) for m in layer.modules()]
    assert sum(isinstance(m, nn.Linear) for m in inside) == len(chosen) >= 6 * LAYERS
    if "llama" not in kind:
        weights = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * FFN)
        assert sum(m.weight.numel() for m in chosen.values()) == weights


def test_sparsity_counts_zeros_by_hand() -> None:
    model = tiny("bert")
    assert sparsity_of(model) == 0
    name, first = next(iter(matrices(model).items()))
    first.weight.data[:8] = 0
    assert shares(model)[name] == 8 / HIDDEN
    whole = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * FFN)
    assert sparsity_of(model) == 8 * HIDDEN / whole


def test_magnitude_by_hand() -> None:
    keep = magnitude_masks({"w": linear_of(HAND)}, 0.5, scope="layer", pattern="unstructured")
    assert keep["w"].int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]


def test_two_of_four_by_hand() -> None:
    keep = magnitude_masks({"w": linear_of(HAND)}, 0.5, scope="layer", pattern="2of4")
    assert keep["w"].int().tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]
    part = magnitude_masks({"w": linear_of(HAND)}, 0.375, scope="layer", pattern="2of4")
    assert part["w"].int().tolist() == [[0, 1, 1, 1], [1, 1, 0, 0]], "0.1, 0.2 and 1, not 0.5"


def test_scopes_by_hand() -> None:
    pair = {"a": linear_of([[1.0, 2.0, 3.0, 4.0]]), "b": linear_of([[-5.0, 6.0, 2.0, 8.0]])}
    layer = magnitude_masks(pair, 0.25, scope="layer", pattern="unstructured")
    assert (~layer["a"]).nonzero().tolist() == [[0, 0]]
    assert (~layer["b"]).nonzero().tolist() == [[0, 2]]
    everywhere = magnitude_masks(pair, 0.25, scope="global", pattern="unstructured")
    assert everywhere["a"].int().tolist() == [[0, 0, 1, 1]], "of the two twos the earlier goes"
    assert everywhere["b"].all()


WEIGHTS = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.sampled_from([4, 8, 12])),
    elements=st.one_of(
        st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
        st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
    ),
)


@settings(deadline=None, max_examples=60)
@given(
    weights=st.lists(WEIGHTS, min_size=1, max_size=3),
    target=st.floats(0, 0.99),
    scope=st.sampled_from(["global", "layer"]),
    pattern=st.sampled_from(["unstructured", "2of4"]),
)
def test_masks_agree_with_a_sort(
    weights: list[np.ndarray], target: float, scope: Any, pattern: Any
) -> None:
    if pattern == "2of4":
        target /= 2
    chosen = {str(i): linear_of(w) for i, w in enumerate(weights)}
    masks = magnitude_masks(chosen, target, scope=scope, pattern=pattern)
    sets = [list(range(len(weights)))] if scope == "global" else [[i] for i in range(len(weights))]
    for members in sets:
        size = np.concatenate([np.abs(weights[i]).ravel() for i in members])
        if pattern == "2of4":
            for group in size.reshape(-1, 4):  # a view: the two larger are out of the contest
                group[np.argsort(group, kind="stable")[2:]] = np.inf
        expected = np.ones(size.size, dtype=bool)
        expected[np.argsort(size, kind="stable")[: round(target * size.size)]] = False
        found = np.concatenate([masks[str(i)].numpy().ravel() for i in members])
        np.testing.assert_array_equal(found, expected)


@settings(deadline=None, max_examples=60)
@given(weight=WEIGHTS)
def test_every_group_of_four_keeps_two(weight: np.ndarray) -> None:
    for keep in (
        two_of_four(torch.from_numpy(np.abs(weight))),
        magnitude_masks({"w": linear_of(weight)}, 0.5, scope="layer", pattern="2of4")["w"],
    ):
        assert (keep.reshape(-1, 4).sum(1) == 2).all()


@settings(deadline=None, max_examples=60)
@given(
    weight=WEIGHTS,
    target=st.floats(0, 0.99),
    steps=st.lists(st.floats(0, 1), min_size=2, max_size=6).map(sorted),
)
def test_the_schedule_rises_and_its_masks_are_nested(
    weight: np.ndarray, target: float, steps: list[float]
) -> None:
    module, before = linear_of(weight), np.ones(weight.shape, dtype=bool)
    for step in steps:
        wanted = cubic_sparsity(step, target, until=0.7)
        keep = magnitude_masks({"w": module}, wanted, scope="layer", pattern="unstructured")
        apply_masks({"w": module}, keep)
        assert not (nonzero({"w": module})["w"].numpy() & ~before).any()
        assert (~keep["w"]).sum() == round(wanted * weight.size)
        before = nonzero({"w": module})["w"].numpy()


@pytest.mark.parametrize(
    ("progress", "start", "expected"),
    [(0.0, 0.0, 0.0), (0.25, 0.0, 0.7875), (0.5, 0.0, 0.9), (0.8, 0.0, 0.9), (0.0, 0.1, 0.1),
     (0.25, 0.1, 0.8), (0.125, 0.1, 0.5625), (1.0, 0.1, 0.9)],
)  # fmt: skip
def test_cubic_by_hand(progress: float, start: float, expected: float) -> None:
    """0.25 of 0.5 is half of the way: 0.9 · (1 - 1/8), or 0.9 - 0.8 / 8; 3/4 left: 27/64."""
    found = cubic_sparsity(progress, 0.9, start=start, until=0.5)
    assert found == pytest.approx(expected, abs=1e-12)


@given(target=st.floats(0, 0.999), sizes=st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_shared_out_is_exact_and_even(target: float, sizes: list[int]) -> None:
    counts = shared_out(target, sizes)
    assert sum(counts) == round(target * sum(sizes))
    assert all(0 <= c <= s and abs(c - target * s) <= 1 for c, s in zip(counts, sizes, strict=True))


@pytest.mark.parametrize(
    ("columns", "target", "pattern", "key"),
    [(6, 0.5, "2of4", "pattern"), (8, 0.6, "2of4", "target"), (8, 1.0, "unstructured", "target"),
     (8, -0.1, "unstructured", "target")],
)  # fmt: skip
def test_the_impossible_is_refused(columns: int, target: float, pattern: Any, key: str) -> None:
    with pytest.raises(ParamsError, match=rf"prune\.sparsity\.{key}: found"):
        magnitude_masks({"w": linear_of(torch.ones(2, columns))}, target,
                        scope="layer", pattern=pattern)  # fmt: skip


def test_a_final_two_of_four_is_half() -> None:
    with pytest.raises(ParamsError, match=r"found 0\.9, expected 0\.5 with pattern 2of4"):
        GradualMagnitude(0.9, scope="layer", pattern="2of4")


class Watch(TrainerCallback):
    """Notes the sparsity and the zeros after every step."""

    def __init__(self) -> None:
        self.sparsity: dict[int, float] = {}
        self.masks: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sparsity[state.global_step] = sparsity_of(kwargs["model"])
        self.masks[state.global_step] = nonzero(matrices(kwargs["model"]))


class Later:
    """A metric that grows from one evaluation to the next."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, _: Any) -> dict[str, float]:
        self.times += 1
        return {"mean": float(self.times)}


def fit(
    model: nn.Module,
    folder: Path,
    *callbacks: TrainerCallback,
    steps: int = 20,
    resume: str | None = None,
    compute_metrics: Any = None,
    **options: Any,
) -> Trainer:
    """A run of Trainer on random texts; a checkpoint every 7 steps, dropout on."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, PIECES, (40, 9), generator=generator)
    rows = [{"input_ids": i, "labels": i.sum() % 5} for i in ids]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, use_cpu=True,
        learning_rate=1e-2, save_steps=7, report_to=[], disable_tqdm=True, seed=1,
        logging_strategy="no", dataloader_pin_memory=False, **{"save_strategy": "no", **options},
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows,
                      callbacks=[*callbacks], compute_metrics=compute_metrics)  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return tiny("bert")


@pytest.mark.parametrize(
    ("target", "pattern", "scope"),
    [(0.9, "unstructured", "global"), (0.8, "unstructured", "layer"), (0.5, "2of4", "layer")],
)
def test_gradual_follows_the_schedule(
    dense: nn.Module, tmp_path: Path, target: float, pattern: Any, scope: Any
) -> None:
    model, watch = clone(dense), Watch()
    gradual = GradualMagnitude(target, scope=scope, pattern=pattern, until=0.7, every=4)
    fit(model, tmp_path, gradual, watch)
    total = sum(m.weight.numel() for m in matrices(model).values())
    for step in range(1, 21):
        made = 14 if step >= 14 else step - step % 4  # 0.7 · 20, which 4 does not divide
        wanted = cubic_sparsity(made / 20, target, until=0.7)
        slack = 0 if scope == "global" else len(matrices(model)) / 2
        assert abs(watch.sparsity[step] * total - wanted * total) <= slack + 0.5 + 1e-6
        for name, mask in watch.masks.get(step - 1, {}).items():
            assert not (watch.masks[step][name] & ~mask).any(), "a zero came back"
    if pattern == "2of4":
        for module in matrices(model).values():
            assert ((module.weight != 0).reshape(-1, 4).sum(1) == 2).all()
    moved = [(a.weight != b.weight).any() for a, b in
             zip(matrices(model).values(), matrices(dense).values(), strict=True)]  # fmt: skip
    assert all(moved)


def test_a_resumed_run_ends_where_a_whole_one_does(dense: nn.Module, tmp_path: Path) -> None:
    def gradual() -> GradualMagnitude:
        return GradualMagnitude(0.9, scope="global", pattern="unstructured", until=0.6, every=3)

    whole, resumed = clone(dense), clone(dense)
    fit(whole, tmp_path, gradual(), save_strategy="steps")
    for parameter in resumed.parameters():  # what it starts from must not matter
        parameter.data.normal_()
    watch = Watch()
    fit(resumed, tmp_path / "again", gradual(), watch, resume=str(tmp_path / "checkpoint-7"))
    assert min(watch.sparsity) == 8
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=0, rtol=0)
    assert sparsity_of(resumed) == pytest.approx(0.9, abs=1e-4)


def test_training_that_ends_too_dense_is_refused(dense: nn.Module, tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 9

    gradual = GradualMagnitude(0.9, scope="layer", pattern="unstructured", every=2)
    with pytest.raises(ParamsError, match=r"prune\.training\.patience: .*step 9 of 20"):
        fit(clone(dense), tmp_path, gradual, Stop())


def test_weights_from_before_the_target_are_refused(dense: nn.Module, tmp_path: Path) -> None:
    gradual = GradualMagnitude(0.9, scope="layer", pattern="unstructured", every=2)
    options: dict[str, Any] = {
        "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 7,
        "save_strategy": "steps", "metric_for_best_model": "eval_mean",
        "greater_is_better": False, "compute_metrics": Later(),
    }  # fmt: skip
    with pytest.raises(ParamsError, match="early stopping prefers the denser model"):
        fit(clone(dense), tmp_path, gradual, **options)


def test_zeros_stay_zero_and_the_rest_trains(dense: nn.Module, tmp_path: Path) -> None:
    model = clone(dense)
    chosen = matrices(model)
    apply_masks(chosen, magnitude_masks(chosen, 0.5, scope="layer", pattern="2of4"))
    before = {name: m.weight.detach().clone() for name, m in chosen.items()}
    fit(model, tmp_path, KeepZeros(), steps=8, save_strategy="steps")
    for name, module in chosen.items():
        assert torch.equal(module.weight == 0, before[name] == 0)
        stayed = (module.weight == before[name]) & (before[name] != 0)
        assert stayed.float().mean() < 0.05
    again = clone(dense)
    fit(again, tmp_path, KeepZeros(), steps=10, resume=str(tmp_path / "checkpoint-7"))
    assert sparsity_of(again) == 0.5


def test_without_the_callback_zeros_do_not_survive(dense: nn.Module, tmp_path: Path) -> None:
    model = clone(dense)
    chosen = matrices(model)
    apply_masks(chosen, magnitude_masks(chosen, 0.5, scope="layer", pattern="2of4"))
    fit(model, tmp_path, steps=2)
    assert sparsity_of(model) < 0.1


def test_gradual_does_not_revive_what_is_sparser_than_its_schedule(
    dense: nn.Module, tmp_path: Path
) -> None:
    model, watch = clone(dense), Watch()
    chosen = matrices(model)
    masks = magnitude_masks(chosen, 0.6, scope="layer", pattern="unstructured")
    apply_masks(chosen, masks)
    gradual = GradualMagnitude(0.7, scope="layer", pattern="unstructured", every=2)
    fit(model, tmp_path, gradual, watch)
    assert min(watch.sparsity.values()) == pytest.approx(0.6, abs=1e-3)
    assert sparsity_of(model) == pytest.approx(0.7, abs=1e-3)
    for now in watch.masks.values():
        assert not any((now[name] & ~masks[name]).any() for name in masks)
