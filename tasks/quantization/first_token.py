"""What is read of the first token alone is computed for the first token alone.

A classifier reads the last layer's states at its first token. Nothing else of that layer is asked
for but its keys and values, so queries, attention, feed-forward and norms of the other tokens are
work that nobody reads: most of a layer. Logits stay what they were to the last bits of fp32
(`tasks.quantization.export.check_export`), whatever the architecture; the rewriting follows the
graph, not the library's modules.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

ELEMENTWISE = {"Add", "Cast", "Div", "Erf", "Gelu", "Mul", "Relu", "Sigmoid", "Sub", "Tanh"}
ROW_BY_ROW = {"LayerNormalization", "Softmax"}
"""Operators over one axis; where that is the last, each row by itself."""
SMALL = 64
"""What has no more elements than this may be a shape, so inference is to see its values."""


@dataclass(frozen=True)
class Reading:
    """A node that wants one entry along an axis of one of its inputs."""

    node: onnx.NodeProto
    place: int
    axis: int


@dataclass(frozen=True)
class Facts:
    """What the walk asks of a graph, by tensor name."""

    shapes: Mapping[str, Sequence[int | None]]
    """None for a size that varies."""
    makers: Mapping[str, onnx.NodeProto]
    numbers: Mapping[str, np.ndarray]
    """Constants of one element."""
    readers: Mapping[str, int]
    """How often a tensor is read, by nodes or as an output of the graph."""


def first_token_alone(model: onnx.ModelProto) -> int:
    """Rewrite a graph in place; returns how many nodes compute one token where they did all.

    From every Gather that picks the first entry of axis 1, the walk goes against the data for as
    long as a tensor is read by nobody else and its maker treats tokens one by one. Where it ends,
    a Slice takes the first token. A graph with branches or loops is left as it is: what they read
    is not seen from outside.
    """
    graph = model.graph
    if any(one.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
           for node in graph.node for one in node.attribute):  # fmt: skip
        return 0
    facts = facts_of(model)
    asked: dict[str, list[Reading]] = defaultdict(list)
    for node in graph.node:
        if picks_first(node, facts):
            asked[node.input[0]].append(Reading(node, 0, 1))
    narrowed: list[onnx.NodeProto] = []
    ends: dict[tuple[str, int], list[Reading]] = defaultdict(list)
    for name in [name for node in reversed(graph.node) for name in node.output]:
        readings = asked.pop(name, [])
        needed = narrow(facts.makers[name], readings, facts)
        if needed is None:
            for reading in readings:
                ends[name, reading.axis].append(reading)
            continue
        narrowed.append(facts.makers[name])
        for reading in needed:
            asked[reading.node.input[reading.place]].append(reading)
    for name, readings in asked.items():  # of inputs and constants
        for reading in readings:
            ends[name, reading.axis].append(reading)

    for node in narrowed:
        if node.op_type == "Reshape":
            sizes = [0, 1, *sizes_after_length(node, facts)]
            node.input[1] = constant(graph, f"{node.output[0]}_first_shape", sizes)
            del node.attribute[:]  # allowzero: here a zero stands for the batch
    for (name, axis), readings in ends.items():
        if not all(picks_first(reading.node, facts) for reading in readings):
            first = slice_first(graph, name, axis, facts)
            for reading in readings:
                reading.node.input[reading.place] = first
    return len(narrowed)


def narrow(node: onnx.NodeProto, readings: Sequence[Reading], facts: Facts) -> list[Reading] | None:
    """What a node reads to make one entry of its output; None where it has to make all."""
    name = node.output[0]
    axes = {reading.axis for reading in readings}
    if len(axes) != 1 or len(readings) != facts.readers[name] or len(node.output) != 1:
        return None
    if any(one not in facts.shapes for one in [*node.input, name]):
        return None
    (axis,) = axes
    shapes, rank = [facts.shapes[one] for one in node.input], len(facts.shapes[name])
    match node.op_type:
        case kind if kind in ELEMENTWISE:  # what is broadcast along the axis is read as it is
            places = [(place, axis - rank + len(shape)) for place, shape in enumerate(shapes)]
            return [Reading(node, place, own) for place, own in places
                    if own >= 0 and shapes[place][own] != 1]  # fmt: skip
        case kind if kind in ROW_BY_ROW:
            over = attribute(node, "axis", -1) % rank
            return [Reading(node, 0, axis)] if axis < over == rank - 1 else None
        case "MatMul":  # of a vector, one axis is gone
            rows = axis == rank - 2 and min(map(len, shapes)) > 1
            return [Reading(node, 0, len(shapes[0]) - 2)] if rows else None
        case "Transpose":
            return [Reading(node, 0, attribute(node, "perm", range(rank)[::-1])[axis])]
        case "Reshape":  # of rank two, tokens of all texts would lie along one axis
            regroups = axis == 1 and len(shapes[0]) > 2 and sizes_after_length(node, facts)
            return [Reading(node, 0, 1)] if regroups else None
    return None


def picks_first(node: onnx.NodeProto, facts: Facts) -> bool:
    """``states[:, 0]``, as the exporter writes it."""
    if node.op_type != "Gather" or attribute(node, "axis", 0) != 1:
        return False
    index = facts.numbers.get(node.input[1])
    return index is not None and index.ndim == 0 and int(index) == 0


def sizes_after_length(node: onnx.NodeProto, facts: Facts) -> list[int]:
    """Of a Reshape to ``[batch, length, …]``: the sizes after those two; none if it is another."""
    parts = facts.makers.get(node.input[1])
    if parts is None or parts.op_type != "Concat":
        return []
    values = [facts.numbers.get(name) for name in parts.input]
    if [value is None for value in values[:2]] != [True, True]:
        return []
    sizes = [int(value.item()) for value in values[2:] if value is not None]
    return sizes if len(sizes) == len(values) - 2 else []


def slice_first(graph: onnx.GraphProto, name: str, axis: int, facts: Facts) -> str:
    """Add a Slice of the first entry, right after the tensor is made; returns its output."""
    first = f"{name}_first_{axis}"
    bounds = {"start": 0, "end": 1, "axis": axis}
    inputs = [constant(graph, f"{first}_{what}", [value]) for what, value in bounds.items()]
    maker = facts.makers.get(name)
    place = 0 if maker is None else 1 + list(graph.node).index(maker)
    node = helper.make_node("Slice", [name, *inputs], [first], name=f"node_{first}")
    graph.node.insert(place, node)
    return first


def constant(graph: onnx.GraphProto, name: str, values: Sequence[int]) -> str:
    """Add whole numbers; returns their name."""
    graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
    return name


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute's value, or what it is where the node does not say."""
    found = (helper.get_attribute_value(one) for one in node.attribute if one.name == name)
    return next(found, default)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which matrices and tables are inputs: inference takes their sizes alone."""
    bare, graph = onnx.ModelProto(), model.graph
    bare.opset_import.extend(model.opset_import)
    bare.ir_version = model.ir_version
    bare.graph.name = graph.name
    bare.graph.node.extend(graph.node)
    bare.graph.input.extend(graph.input)
    bare.graph.output.extend(graph.output)
    for tensor in graph.initializer:
        if math.prod(tensor.dims) > SMALL:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            bare.graph.input.append(info)
        else:
            bare.graph.initializer.append(tensor)
    return bare


def facts_of(model: onnx.ModelProto) -> Facts:
    """Read a graph; sizes as far as shape inference reaches."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True).graph
    shapes: dict[str, Sequence[int | None]] = {t.name: t.dims for t in model.graph.initializer}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        if value.type.tensor_type.HasField("shape"):
            sizes = value.type.tensor_type.shape.dim
            shapes[value.name] = [s.dim_value if s.HasField("dim_value") else None for s in sizes]
    graph = model.graph
    return Facts(
        shapes=shapes,
        makers={name: node for node in graph.node for name in node.output},
        numbers={t.name: numpy_helper.to_array(t) for t in graph.initializer
                 if math.prod(t.dims) == 1},
        readers=Counter([*(name for node in graph.node for name in node.input),
                         *(output.name for output in graph.output)]),
    )  # fmt: skip
