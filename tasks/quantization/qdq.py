"""Write trained grids into an exported graph: explicit Q/DQ pairs with exactly those scales."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import nn

from tasks.quantization.fake import Grid
from tasks.quantization.layers import Weighted, weighted_nodes
from tasks.quantization.tables import drop_unused, store_table


def write_grids(source: Path, target: Path, module: nn.Module, grids: Mapping[str, Grid]) -> None:
    """Store matrices and tables as int8 with their grids' scales, and quantise matrices' inputs.

    What has no grid stays fp32.

    Args:
        source: fp32 graph of a settled model.
        module: that model: the graph's matrices are found by their content.
        grids: by module name.
    """
    model = onnx.load(source)
    del model.graph.value_info[:]
    for node in weighted_nodes(model, module):
        if node.layer not in grids:
            continue
        grid = grids[node.layer]
        if node.operator == "Gather":
            table = numpy_helper.to_array(
                next(t for t in model.graph.initializer if t.name == node.weight)
            )
            scale = np.float32(grid.weight_scale.item())
            store_table(model.graph, node, np.rint(table / scale), scale)
        else:
            _matrix(model.graph, node, grid)
    drop_unused(model.graph)
    onnx.save(model, target)


def _matrix(graph: onnx.GraphProto, node: Weighted, grid: Grid) -> None:
    place = next(i for i, n in enumerate(graph.node) if n.name == node.node)
    target = graph.node[place]
    array = numpy_helper.to_array(next(t for t in graph.initializer if t.name == node.weight))
    rows = node.operator == "Gemm" and any(a.name == "transB" and a.i for a in target.attribute)
    scale = grid.weight_scale.numpy().astype(np.float32)
    each = scale.ndim == 1
    levels = np.rint(array / (scale[:, None] if rows and each else scale)).astype(np.int8)
    axis: dict[str, Any] = {"axis": 0 if rows else 1} if each else {}
    kind = np.int8 if grid.signed else np.uint8
    name = node.node
    _keep(graph, f"{name}_weight", levels)
    _keep(graph, f"{name}_weight_scale", scale)
    _keep(graph, f"{name}_weight_zero_point", np.zeros(scale.shape, np.int8))
    _keep(graph, f"{name}_input_scale", np.array(grid.input_scale, np.float32))
    _keep(graph, f"{name}_input_zero_point", np.array(grid.input_zero, kind))
    pair = [f"{name}_input_scale", f"{name}_input_zero_point"]
    weight = [f"{name}_weight{end}" for end in ("", "_scale", "_zero_point")]
    before = [
        helper.make_node("QuantizeLinear", [target.input[0], *pair], [f"{name}_bytes"],
                         name=f"{name}_quantize"),
        helper.make_node("DequantizeLinear", [f"{name}_bytes", *pair], [f"{name}_input"],
                         name=f"{name}_dequantize"),
        helper.make_node("DequantizeLinear", weight, [f"{name}_matrix"],
                         name=f"{name}_dequantize_weight", **axis),
    ]  # fmt: skip
    target.input[0], target.input[1] = f"{name}_input", f"{name}_matrix"
    for made in reversed(before):
        graph.node.insert(place, made)


def _keep(graph: onnx.GraphProto, name: str, array: np.ndarray) -> None:
    graph.initializer.append(numpy_helper.from_array(array, name))
