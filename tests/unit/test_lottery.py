"""Lottery tickets: what is cut, what is rewound, and what is held meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from tasks.errors import DataError, ParamsError
from tasks.modeling.checkpoint import clone
from tasks.pruning.lottery import lottery, ticket_sparsity
from tasks.pruning.sparsity import matrices, sparsity_of
from tests.tiny_models import tiny
from tests.unit.test_sparsity import fit

State = dict[str, torch.Tensor]


def copy_of(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def held() -> int:
    """Bytes of all tensors that Python holds, shared storage counted once."""
    kinds = (torch.Tensor, nn.Parameter)
    found = [t for t in gc.get_objects() if type(t) in kinds and t.layout == torch.strided]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}
    return sum(storages.values())


class Diary:
    """Real training that notes the weights before and after."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.before: list[State] = []
        self.after: list[State] = []

    def __call__(self, model: nn.Module, callbacks: Sequence[TrainerCallback]) -> None:
        self.before.append(copy_of(model))
        fit(model, self._folder, *callbacks, steps=4)
        self.after.append(copy_of(model))


@pytest.fixture(scope="module")
def early() -> nn.Module:
    return tiny("bert")


def test_ticket_sparsity_by_hand() -> None:
    """Half of what is left goes in each of three rounds; 0.9 in two: 1 - sqrt(0.1)."""
    assert [ticket_sparsity(n, 3, 0.875) for n in (1, 2, 3)] == [0.5, 0.75, 0.875]
    assert ticket_sparsity(1, 2, 0.9) == pytest.approx(0.683772, abs=1e-6)
    assert ticket_sparsity(1, 1, 0.9) == 0.9


@pytest.mark.parametrize(
    ("target", "pattern", "scope"),
    [(0.75, "unstructured", "layer"), (0.75, "unstructured", "global"), (0.5, "2of4", "layer")],
)
def test_each_round_cuts_the_smallest_and_rewinds(
    early: nn.Module, tmp_path: Path, target: float, pattern: Any, scope: Any
) -> None:
    model, diary = tiny("bert"), Diary(tmp_path)
    for parameter in model.parameters():  # a trained model, of which nothing may be left
        parameter.data.add_(1.0)
    start = copy_of(early)
    reached = lottery(model, start, train=diary, target=target, rounds=2, scope=scope,
                      pattern=pattern)  # fmt: skip
    names = [f"{name}.weight" for name in matrices(model)]
    total = sum(start[name].numel() for name in names)
    keep = {name: torch.ones_like(start[name], dtype=torch.bool) for name in names}
    assert len(diary.before) == 3
    for number, (before, after) in enumerate(zip(diary.before, diary.after, strict=True)):
        kept = {name: before[name] != 0 for name in names}
        for name, value in start.items():
            expected = value * kept[name] if name in kept else value
            assert torch.equal(before[name], expected), f"{name} was not rewound"
            if name in kept:
                assert not (kept[name] & ~keep[name]).any(), "a zero came back"
                assert torch.equal(after[name] != 0, kept[name]), "training did not keep the mask"
        if number:
            wanted = ticket_sparsity(number, 2, target)
            zeros = sum(int((~kept[name]).sum()) for name in names)
            slack = 0 if scope == "global" else len(names) / 2
            assert abs(zeros - wanted * total) <= 0.5 + slack
            assert reached[number - 1] == zeros / total
            _cut_the_smallest(diary.after[number - 1], keep, kept, scope, pattern)
        keep = kept
    assert sparsity_of(model) == reached[-1] == pytest.approx(target, abs=1e-12)


def _cut_the_smallest(
    trained: State,
    keep: dict[str, torch.Tensor],
    kept: dict[str, torch.Tensor],
    scope: str,
    pattern: str,
) -> None:
    """Of the survivors of the round before, no cut weight was larger than one that stayed."""
    if pattern == "2of4":
        for name in kept:
            size, stays = trained[name].abs().reshape(-1, 4), kept[name].reshape(-1, 4)
            assert (stays.sum(1) >= 2).all()
            largest = size.masked_fill(stays, 0).max(1).values
            assert (largest <= size.masked_fill(~stays, torch.inf).min(1).values).all()
        return
    cut = [float(trained[name][keep[name] & ~kept[name]].abs().max()) for name in kept]
    least = [float(trained[name][kept[name]].abs().min()) for name in kept]
    if scope == "global":
        assert max(cut) <= min(least)
    else:
        assert all(c <= s for c, s in zip(cut, least, strict=True))


def test_no_more_is_held_than_early_state_and_model(early: nn.Module) -> None:
    model, start, seen = clone(early), copy_of(early), []
    before = held()
    assert before >= sum(v.nbytes for v in start.values())

    def train(trained: nn.Module, callbacks: Sequence[TrainerCallback]) -> None:
        seen.append(held())  # the callback makes the mask once training begins
        for parameter in trained.parameters():
            parameter.data.mul_(1.5)

    lottery(model, start, train=train, target=0.8, rounds=2, scope="global", pattern="unstructured")
    assert seen == [before] * 3


def test_a_state_that_does_not_fit_is_refused(early: nn.Module) -> None:
    def train(_: nn.Module, __: Sequence[TrainerCallback]) -> None:
        pytest.fail("trained")

    def run(state: State, target: float = 0.5, pattern: Any = "unstructured") -> None:
        lottery(clone(early), state, train=train, target=target, rounds=1, scope="layer",
                pattern=pattern)  # fmt: skip

    name = f"{next(iter(matrices(early)))}.weight"
    state = copy_of(early)
    with pytest.raises(DataError, match=r"distill\.early: the early copy has \(16, 32\) at bert"):
        run({**state, name: state[name][:16]})
    with pytest.raises(DataError, match="has nothing at"):
        run({key: value for key, value in state.items() if key != name})
    with pytest.raises(ParamsError, match=r"found 0\.9, expected 0\.5"):
        run(state, target=0.9, pattern="2of4")


def test_a_state_that_is_the_models_own_is_refused(early: nn.Module) -> None:
    with pytest.raises(ValueError, match="copy it first"):
        lottery(early, early.state_dict(), train=lambda *_: None, target=0.5, rounds=1,
                scope="layer", pattern="unstructured")  # fmt: skip
