"""Which nodes of an exported graph hold matrices and tables, and what those are called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

TABLE_ROWS = 16
"""A Gather from fewer rows picks a token or an axis, no embedding."""


@dataclass(frozen=True)
class Weighted:
    """A node with a constant matrix, in the order of the graph."""

    node: str
    operator: str
    """MatMul, Gemm or Gather."""
    weight: str
    """The initializer."""
    output: str
    layer: str
    """The module that it comes from, as the checkpoint names it."""
    bytes: int
    """In fp32."""


def weighted_nodes(
    graph: onnx.ModelProto | Path, module: nn.Module | None = None
) -> list[Weighted]:
    """All MatMul, Gemm and Gather nodes over a constant matrix.

    Args:
        module: the model that was exported. The exporter transposes most matrices and gives them
            numbers for names; their content tells which is which.
    """
    model = onnx.load(graph) if isinstance(graph, Path) else graph
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    names = {} if module is None else dict(_fingerprints(module))
    found = []
    for node in model.graph.node:
        if (place := _place(node, constants)) is None:
            continue
        tensor = constants[node.input[place]]
        array = numpy_helper.to_array(tensor)
        layer = names.get(_fingerprint(array), "") or names.get(_fingerprint(array.T), "")
        found.append(
            Weighted(node.name, node.op_type, tensor.name, node.output[0],
                     layer or node.name, array.size * 4)
        )  # fmt: skip
    return found


def _place(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> int | None:
    """Which input of a node is a constant matrix."""
    if node.op_type in ("MatMul", "Gemm"):
        return 1 if node.input[1] in constants else None
    if node.op_type == "Gather" and node.input[0] in constants:
        dims = constants[node.input[0]].dims
        return 0 if len(dims) == 2 and dims[0] >= TABLE_ROWS else None
    return None


def _fingerprints(module: nn.Module) -> Iterator[tuple[str, str]]:
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            yield _fingerprint(parameter.detach().numpy()), name.removesuffix(".weight")
    for name, part in module.named_modules():
        # the export adds the one segment to every position
        if hasattr(part, "token_type_embeddings") and hasattr(part, "position_embeddings"):
            segment = part.token_type_embeddings.weight[0]
            table = (part.position_embeddings.weight + segment).detach().numpy()
            yield _fingerprint(table), f"{name}.position_embeddings"


def _fingerprint(array: np.ndarray) -> str:
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()
