"""What is simulated in training is what is served: steps, levels, logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tasks.hardware import PROFILES
from tasks.modeling.architecture import layers_of, linear
from tasks.problems.classification import pad
from tasks.pruning.sparsity import KeepZeros, apply_masks, magnitude_masks, matrices, nonzero
from tasks.quantization.export import export_onnx
from tasks.quantization.fake import (
    LearnedRound,
    QuantEmbedding,
    QuantLinear,
    prepare,
    quantised_modules,
    settle,
)
from tasks.quantization.fidelity import compare, logits_one_by_one
from tasks.quantization.layers import weighted_nodes
from tasks.quantization.qdq import write_grids
from tasks.quantization.readiness import not_ready
from tests.tiny_models import PIECES, tiny
from tests.unit.test_quantization import made

GENERATOR = torch.Generator().manual_seed(3)
IDS = [torch.randint(5, PIECES, (n,), generator=GENERATOR).tolist() for n in (9, 6, 3, 12) * 8]
CPU, GPU = PROFILES["cpu-avx2"], PROFILES["gpu-sm90"]
FORMS = [
    *(("bert", CPU, each, tables) for each in (True, False) for tables in (True, False)),
    ("bert", GPU, True, True), ("bert", GPU, False, False), ("mpnet", CPU, True, True),
    ("llama", CPU, True, True),
]  # fmt: skip
"""Model, profile, ``per_channel``, ``embeddings``."""


def simulated(model: torch.nn.Module) -> np.ndarray:
    """Logits of each text alone."""
    pad_id = model.config.pad_token_id
    with torch.no_grad():
        rows = [model(input_ids=i, attention_mask=m).logits for i, m in
                (pad([row], pad_id) for row in IDS)]  # fmt: skip
    return torch.cat(rows).numpy()


def begin(
    model: torch.nn.Module, profile: object, *, per_channel: bool = True, embeddings: bool = True
) -> torch.nn.Module:
    batches = (pad([row], model.config.pad_token_id) for row in IDS[:16])
    prepare(model, batches, profile, per_channel=per_channel, embeddings=embeddings)
    return model


def train(
    model: torch.nn.Module,
    target: torch.Tensor,
    steps: int = 30,
    after: Callable[[], None] = lambda: None,
) -> None:
    """A few steps towards logits of a float model; `after` each."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    ids, mask = pad(IDS, model.config.pad_token_id)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(input_ids=ids, attention_mask=mask).logits - target).square().mean().backward()
        optimizer.step()
        after()


def float_logits(model: torch.nn.Module) -> torch.Tensor:
    ids, mask = pad(IDS, model.config.pad_token_id)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize(("kind", "profile", "per_channel", "embeddings"), FORMS)
def test_what_was_simulated_is_what_is_served(
    kind: str, profile: object, per_channel: bool, embeddings: bool, tmp_path: Path
) -> None:
    model = begin(tiny(kind), profile, per_channel=per_channel, embeddings=embeddings)
    train(model, float_logits(tiny(kind)), steps=5)
    expected = simulated(model.eval())
    steps = {name: module.weight_step.detach().abs().squeeze(-1).numpy().copy()
             for name, module in quantised_modules(model)}  # fmt: skip
    inputs = {name: float(module.input_step.detach().abs()) for name, module in
              quantised_modules(model) if isinstance(module, QuantLinear)}  # fmt: skip
    grids = settle(model)
    export_onnx(model, tmp_path / "float.onnx", max_length=16)
    write_grids(tmp_path / "float.onnx", tmp_path / "model.onnx", model, grids)
    served = logits_one_by_one(tmp_path / "model.onnx", IDS, weight_bits=8)
    off = np.abs(served - expected).max(-1)
    assert (off < 2e-5).mean() > 0.9
    assert off.max() < 0.05, "one that lies between two levels may fall to either side"

    graph = onnx.load(tmp_path / "model.onnx")
    assert not (profile.symmetric and not_ready(graph))
    kept = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    nodes = weighted_nodes(tmp_path / "float.onnx", model)
    assert {node.layer for node in nodes} >= set(steps)
    for node in nodes:
        if node.layer in inputs:
            scale = kept[f"{node.node}_weight_scale"]
            np.testing.assert_array_equal(scale, steps[node.layer], strict=True)
            assert scale.ndim == per_channel
            assert kept[f"{node.node}_weight_zero_point"].shape == scale.shape
            assert kept[f"{node.node}_input_scale"].shape == ()
            assert kept[f"{node.node}_input_scale"] == np.float32(inputs[node.layer])
            assert kept[f"{node.node}_weight"].dtype == np.int8
            zero = kept[f"{node.node}_input_zero_point"]
            assert zero.dtype == (np.int8 if profile.symmetric else np.uint8)
            assert zero == 0 or not profile.symmetric
        elif embeddings:
            np.testing.assert_array_equal(kept[f"{node.weight}_scale"], steps[node.layer])
        else:
            exact = onnx.load(tmp_path / "float.onnx").graph.initializer
            table = numpy_helper.to_array(next(t for t in exact if t.name == node.weight))
            np.testing.assert_array_equal(kept[node.weight], table, strict=True)


@pytest.mark.parametrize("per_channel", [True, False])
def test_scales_have_the_shapes_of_the_form_that_is_not_trained(
    per_channel: bool, tmp_path: Path
) -> None:
    model = begin(tiny("bert"), GPU, per_channel=per_channel, embeddings=True)
    grids = settle(model)
    export_onnx(model, tmp_path / "float.onnx", max_length=16)
    write_grids(tmp_path / "float.onnx", tmp_path / "trained.onnx", model, grids)
    static = made(tmp_path / "float.onnx", tmp_path, GPU, scheme="static", per_channel=per_channel)

    def shapes(path: Path) -> set[tuple[tuple[int, ...], ...]]:
        """Of scale and zero point, and the axis."""
        graph = onnx.load(path).graph
        dims = {t.name: tuple(t.dims) for t in graph.initializer}
        return {(dims[n.input[1]], dims[n.input[2]], tuple(a.i for a in n.attribute))
                for n in graph.node if n.op_type == "DequantizeLinear"}  # fmt: skip

    assert shapes(tmp_path / "trained.onnx") == shapes(static)


def test_tables_that_are_not_asked_for_are_not_touched() -> None:
    model, plain = begin(tiny("bert"), CPU, embeddings=False), tiny("bert").state_dict()
    grids = settle(model)
    assert not [name for name in grids if "embeddings" in name]
    tables = [name for name in plain if "_embeddings." in name]
    assert len(tables) == 3
    for name in tables:
        assert torch.equal(model.state_dict()[name], plain[name])


@pytest.mark.parametrize("per_channel", [True, False])
def test_zeros_of_a_sparse_model_stay(per_channel: bool) -> None:
    model = tiny("bert")
    chosen = matrices(model)
    apply_masks(chosen, magnitude_masks(chosen, 0.5, scope="global", pattern="unstructured"))
    masks = nonzero(chosen)
    begin(model, CPU, per_channel=per_channel)
    keep = KeepZeros()
    keep.on_train_begin(None, None, None, model=model)
    train(model, float_logits(tiny("bert")), steps=5,
          after=lambda: keep.on_optimizer_step(None, None, None, model=model))  # fmt: skip
    settle(model)
    for name, module in matrices(model).items():
        assert not module.weight[~masks[name]].any()
        assert module.weight.any()


def test_settled_modules_are_plain_and_on_their_grid() -> None:
    model = begin(tiny("bert"), CPU)
    names = [name for name, _ in quantised_modules(model)]
    grids = settle(model)
    assert list(grids) == names
    assert not any(isinstance(m, QuantLinear | QuantEmbedding) for m in model.modules())
    assert model.state_dict().keys() == tiny("bert").state_dict().keys()
    levels = model.classifier.weight / grids["classifier"].weight_scale[:, None]
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert levels.abs().max().round() <= 63, "seven bits where sums would saturate"


def test_the_gradient_is_that_of_the_paper() -> None:
    """x / s of 0.4, 1.6, 5 and −7 with levels −2 … 2: rounds to 0, 2; beyond, to the ends."""
    x = torch.tensor([0.4, 1.6, 5.0, -7.0], requires_grad=True)
    step = torch.ones(1, requires_grad=True)
    y = LearnedRound.apply(x, step, torch.zeros(1), -2, 2)
    assert y.tolist() == [0.0, 2.0, 2.0, -2.0]
    y.backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 10.0, 0.0, 0.0]
    slopes = torch.tensor([0 - 0.4, 2 - 1.6, 2.0, -2.0])
    expected = (slopes * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum() / (4 * 2) ** 0.5
    assert step.grad is not None
    assert step.grad.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # a step for each row: 1·−0.4 + 10·0.4 and 100·2 + 1000·−2, two values a step, levels to 2
        ([[1.0], [1.0]], [[3.6 / 4**0.5], [-1800 / 4**0.5]]),
        # one for all: their sum, four values
        ([1.0], [-1796.4 / 8**0.5]),
    ],
    ids=["per channel", "per matrix"],
)
def test_a_step_learns_from_all_that_share_it(steps: list[Any], expected: list[Any]) -> None:
    x = torch.tensor([[0.4, 1.6], [5.0, -7.0]])
    step = torch.tensor(steps, requires_grad=True)
    y = LearnedRound.apply(x, step, torch.zeros(1), -2, 2)
    y.backward(torch.tensor([[1.0, 10.0], [100.0, 1000.0]]))
    torch.testing.assert_close(step.grad, torch.tensor(expected))


def test_a_zero_point_moves_the_range() -> None:
    x = torch.tensor([-1.0, 0.0, 3.0, 9.0])
    y = LearnedRound.apply(x, torch.ones(1), torch.ones(1), 0, 5)
    assert y.tolist() == [-1.0, 0.0, 3.0, 4.0]


def test_training_rescues_what_rounding_ruined() -> None:
    """In every layer one channel is a thousand times too long, and undone by the next matrix."""
    exact = tiny("bert")
    with torch.no_grad():
        for layer in layers_of(exact):
            value = linear(layer, "attention.self.value")
            value.weight[3] *= 1000
            value.bias[3] *= 1000
            linear(layer, "attention.output.dense").weight[:, 3] /= 1000
    target = float_logits(exact)
    model = copy.deepcopy(exact)
    begin(model, CPU)
    before = compare(target.numpy(), simulated(model), target.argmax(-1).numpy())
    train(model, target, steps=60)
    after = compare(target.numpy(), simulated(model.eval()), target.argmax(-1).numpy())
    assert after.kl < before.kl / 2
    assert after.flip_rate <= before.flip_rate
