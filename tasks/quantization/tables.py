"""Embedding tables in eight bits: Gather reads bytes, and what it read is scaled.

Half of a small model is its word table. ONNX Runtime's static tools would scale the whole
table on every call, and its weight-only tools leave it as it is.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tasks.quantization.layers import Weighted, weighted_nodes

LEVELS = 127


def tables_to_int8(model: onnx.ModelProto, *, keep_float: Collection[str] = ()) -> None:
    """Store every table that a Gather reads as int8 with one scale, in place.

    Symmetric, zero point 0: a row r is scale · q(r), with scale = max |table| / 127.

    Args:
        keep_float: names of nodes that are left alone.
    """
    graph = model.graph
    wanted = [w for w in weighted_nodes(model)
              if w.operator == "Gather" and w.node not in keep_float]  # fmt: skip
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for table in wanted:
        array = numpy_helper.to_array(tensors[table.weight])
        scale = np.float32(np.abs(array).max() / LEVELS) or np.float32(1.0)
        store_table(graph, table, np.clip(np.rint(array / scale), -LEVELS, LEVELS), scale)
    drop_unused(graph)


def store_table(
    graph: onnx.GraphProto, table: Weighted, levels: np.ndarray, scale: np.float32
) -> None:
    """Have a Gather read int8 levels ``[pieces, channels]``; what it finds is scaled."""
    index, node = next((i, n) for i, n in enumerate(graph.node) if n.name == table.node)
    read, grid = f"{table.output}_int8", [f"{table.weight}_scale", f"{table.weight}_zero_point"]
    node.input[0], node.output[0] = f"{table.weight}_int8", read
    graph.initializer.extend([
        numpy_helper.from_array(levels.astype(np.int8), f"{table.weight}_int8"),
        numpy_helper.from_array(np.array(scale), grid[0]),
        numpy_helper.from_array(np.array(0, np.int8), grid[1]),
    ])  # fmt: skip
    scaled = helper.make_node(
        "DequantizeLinear", [read, *grid], [table.output], name=f"{table.node}_dequantize"
    )
    graph.node.insert(index + 1, scaled)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the tensors that no node reads any more, in place."""
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
