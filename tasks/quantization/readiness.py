"""Whether a graph is what TensorRT 11 takes, as far as that can be seen without a GPU.

Limits and operators are those of TensorRT's ONNX guide (opset 9 to 25) and of the operator table
of its parser (`onnx/onnx-tensorrt`, ``docs/operators.md``).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

OPSETS = range(9, 26)
SUPPORTED = frozenset({
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape",
    "Cos", "CumSum", "DequantizeLinear", "Div", "Einsum", "Equal", "Erf", "Exp", "Expand",
    "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "Greater",
    "GreaterOrEqual", "Identity", "LayerNormalization", "Less", "LessOrEqual", "Log",
    "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "QuantizeLinear",
    "Range", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "Relu", "Reshape", "ScatterND", "Shape", "Sigmoid", "Sign", "Sin", "Slice", "Softmax",
    "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Trilu", "Unsqueeze",
    "Where", "Xor",
})  # fmt: skip
"""Of the default domain; the parser has more, which no text classifier needs."""
PAIR = ("QuantizeLinear", "DequantizeLinear")


def not_ready(model: onnx.ModelProto) -> list[str]:
    """What TensorRT would refuse, or compute in another precision than was meant; empty if nothing.

    Looked at: opset, operators, that every zero point is 0 and every scale a positive constant,
    that bytes are signed, and that no matrix product takes bytes that were not dequantised.
    """
    found = []
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        found.append(f"opset {opset}: expected {OPSETS[0]} to {OPSETS[-1]}")
    kinds = {f"{n.domain}::{n.op_type}" if n.domain not in ("", "ai.onnx") else n.op_type
             for n in model.graph.node}  # fmt: skip
    found += [f"{kind}: not in the parser's table" for kind in sorted(kinds - SUPPORTED)]
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in PAIR:
            found += [f"{node.name}: {fault}" for fault in _pair_faults(node, constants)]
    return found + [f"{name}: takes bytes, expected them dequantised" for name in _raw(model)]


def _pair_faults(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> Iterator[str]:
    scale = constants.get(node.input[1])
    if scale is None:
        yield "its scale is computed, expected a constant"
    elif not (numpy_helper.to_array(scale) > 0).all():
        yield "a scale is not positive"
    if len(node.input) > 2 and node.input[2]:
        zero = constants.get(node.input[2])
        if zero is None:
            yield "its zero point is computed, expected the constant 0"
        elif np.any(numpy_helper.to_array(zero)):
            yield "a zero point is not 0"
        elif zero.data_type != TensorProto.INT8:
            yield f"found {TensorProto.DataType.Name(zero.data_type)}, expected INT8"
    elif node.op_type == "QuantizeLinear":
        yield "no zero point: it would give unsigned bytes"


def _raw(model: onnx.ModelProto) -> list[str]:
    """Products that are given bytes as they are."""
    kind = (TensorProto.INT8, TensorProto.UINT8)
    raw = {t.name for t in model.graph.initializer if t.data_type in kind}
    raw |= {o for n in model.graph.node if n.op_type == "QuantizeLinear" for o in n.output}
    return [n.name for n in model.graph.node
            if n.op_type in ("MatMul", "Gemm") and raw & set(n.input[:2])]  # fmt: skip
