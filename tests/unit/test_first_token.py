"""The last layer computes the first token alone, where the classifier reads nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tasks.quantization.export import export_onnx
from tasks.quantization.first_token import first_token_alone
from tests.tiny_models import GROUPED, tiny
from tests.unit.test_exits import some_exits
from tests.unit.test_export import DIFFERENT

BATCH, LENGTH, CHANNELS = 2, 5, 4
Outputs = dict[str, np.ndarray]


def everything(model: onnx.ModelProto, feeds: Outputs) -> Outputs:
    """The output of each node."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for node in model.graph.node for name in node.output
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("kind", DIFFERENT)
def test_the_last_layer_is_asked_for_one_token(kind: str, tmp_path: Path) -> None:
    export_onnx(tiny(kind), tmp_path / "model.onnx", max_length=16)
    model = onnx.load(tmp_path / "model.onnx")
    ids = np.arange(2, 2 + 3 * 7, dtype=np.int64).reshape(3, 7)
    found = everything(model, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    matrices = [node for node in model.graph.node if node.op_type == "MatMul"]
    last = [found[node.output[0]].shape[-2] for node in matrices][-5:]
    scores = [found[n.output[0]].shape[-2:] for n in model.graph.node if n.op_type == "Softmax"]
    if kind == GROUPED:  # it reads the last token, of which a graph does not know where it is
        assert set(last) == {7}
        assert set(scores) == {(7, 7)}
    else:  # scores, weighted values, what joins the heads, and the two of the feed-forward
        assert last == [1] * 5
        assert scores[-1] == (1, 7)
        assert set(scores[:-1]) == {(7, 7)}


def test_states_that_are_handed_on_stay_whole(tmp_path: Path) -> None:
    model = tiny("bert")
    export_onnx(model, tmp_path / "model.onnx", max_length=16, exits=some_exits(model))
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    ids = np.full((2, 6), 3, dtype=np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    states = session.run(["hidden_0", "hidden_1"], feeds)
    assert [one.shape[1] for one in states] == [6, 6]


def graph(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """Over ``x`` [batch, length, channels], a matrix ``w`` and an index ``zero``."""
    shape = ["batch", "length", CHANNELS]
    weight = np.arange(CHANNELS * CHANNELS, dtype=np.float32).reshape(CHANNELS, CHANNELS)
    constants = {"w": weight, "zero": np.array(0), "one": np.array(1),
                 "several": np.arange(LENGTH, dtype=np.float32).reshape(LENGTH, 1)}  # fmt: skip
    return helper.make_model(
        helper.make_graph(
            nodes, "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)], ir_version=10,
    )  # fmt: skip


def agree(model: onnx.ModelProto, narrowed: int) -> onnx.ModelProto:
    """The rewritten graph, which answers as before."""
    feeds = {"x": np.random.default_rng(1).normal(size=(BATCH, LENGTH, CHANNELS))}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    before = everything(model, feeds)
    assert first_token_alone(model) == narrowed
    after = everything(model, feeds)
    for output in model.graph.output:
        np.testing.assert_allclose(after[output.name], before[output.name], rtol=1e-6)
    return model


def node(kind: str, *names: str, **attributes: object) -> onnx.NodeProto:
    *inputs, output = names
    return helper.make_node(kind, inputs, [output], name=f"node_{output}", **attributes)


FIRST = node("Gather", "h", "zero", "y", axis=1)


def test_a_product_row_by_row() -> None:
    model = agree(graph(node("MatMul", "x", "w", "h"), FIRST), 1)
    assert [n.op_type for n in model.graph.node] == ["Slice", "MatMul", "Gather"]


def test_the_second_token_is_not_the_first() -> None:
    second = node("Gather", "h", "one", "y", axis=1)
    agree(graph(node("MatMul", "x", "w", "h"), second), 0)


def test_another_reader_needs_all_tokens() -> None:
    total = node("ReduceSum", "h", "z", keepdims=0)
    agree(graph(node("MatMul", "x", "w", "h"), FIRST, total, outputs=("y", "z")), 0)
    agree(graph(node("MatMul", "x", "w", "h"), FIRST, outputs=("y", "h")), 0)


def test_tokens_that_are_mixed_are_all_computed() -> None:
    mixed = node("Softmax", "a", "h", axis=1)
    model = agree(graph(node("MatMul", "x", "w", "a"), mixed, FIRST), 0)
    assert [n.op_type for n in model.graph.node] == ["MatMul", "Softmax", "Gather"]
    over = node("Softmax", "a", "b", axis=1), node("Tanh", "b", "h")
    model = agree(graph(node("MatMul", "x", "w", "a"), *over, FIRST), 1)
    kinds = [n.op_type for n in model.graph.node]
    assert kinds == ["MatMul", "Softmax", "Slice", "Tanh", "Gather"]


def test_what_has_a_row_for_each_token_gives_its_first() -> None:
    agree(graph(node("Add", "x", "several", "h"), FIRST), 1)


def test_two_readers_that_both_want_the_first() -> None:
    residual = node("Add", "a", "x", "b"), node("Tanh", "b", "c"), node("Add", "b", "c", "h")
    model = agree(graph(node("MatMul", "x", "w", "a"), *residual, FIRST), 4)
    assert [n.op_type for n in model.graph.node].count("Slice") == 1


def reshaped(*sizes: str) -> list[onnx.NodeProto]:
    """``r`` from ``a``: a Reshape to the batch and length of ``x``, and `sizes`."""
    return [
        node("Shape", "x", "batch", start=0, end=1), node("Shape", "x", "length", start=1, end=2),
        node("Concat", "batch", "length", *sizes, "shape", axis=0),
        node("Reshape", "a", "shape", "h"),
    ]  # fmt: skip


def with_numbers(model: onnx.ModelProto, **numbers: int) -> onnx.ModelProto:
    arrays = {name: np.array([value], dtype=np.int64) for name, value in numbers.items()}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    return model


def test_a_token_may_be_regrouped_but_not_mixed_with_others() -> None:
    heads = with_numbers(
        graph(node("MatMul", "x", "w", "a"), *reshaped("two", "half"), FIRST), two=2, half=2
    )
    agree(heads, 2)
    flat = node("Reshape", "x", "flat", "b"), node("MatMul", "b", "w", "a")
    joined = with_numbers(graph(*flat, *reshaped("whole"), FIRST), whole=CHANNELS)
    joined.graph.initializer.append(numpy_helper.from_array(np.array([-1, CHANNELS]), "flat"))
    agree(joined, 0)


def test_a_product_with_a_vector_has_lost_an_axis() -> None:
    model = graph(node("MatMul", "x", "v", "h"), FIRST)
    vector = np.arange(CHANNELS, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(vector, "v"))
    agree(model, 0)


def test_a_norm_that_gives_its_mean_too_is_left_whole() -> None:
    norm = helper.make_node("LayerNormalization", ["x", "scale"], ["h", "mean"], axis=-1)
    model = graph(norm, FIRST, node("Gather", "mean", "zero", "z", axis=1), outputs=("y", "z"))
    scale = np.ones(CHANNELS, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(scale, "scale"))
    agree(model, 0)


def test_a_graph_with_a_branch_is_left_as_it_is() -> None:
    inner = [
        helper.make_graph([node("Identity", "h", name)], name, [],
                          [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
        for name in ("then", "else")
    ]  # fmt: skip
    branch = node("If", "yes", "z", then_branch=inner[0], else_branch=inner[1])
    model = graph(node("MatMul", "x", "w", "h"), FIRST, branch, outputs=("y", "z"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    agree(model, 0)
