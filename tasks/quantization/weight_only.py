"""Weights in four, eight or sixteen bits, products in fp32: for models that wait for memory."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import ml_dtypes
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks.quantization.layers import weighted_nodes
from tasks.quantization.post_training import quietly
from tasks.quantization.tables import tables_to_int8

BLOCK = 32
"""Inputs of a channel that share a scale."""


def quantize_weights(
    source: Path, target: Path, *, bits: int, embeddings: bool, keep_float: Collection[str] = ()
) -> None:
    """Matrices in `bits`, a scale for every `BLOCK` inputs of a channel; the head's stay fp32.

    Args:
        bits: 4 or 8.
        embeddings: tables in int8, whatever `bits` is.
        keep_float: names of nodes that stay as they are.
    """
    model = onnx.load(source)
    del model.graph.value_info[:]
    if embeddings:
        tables_to_int8(model, keep_float=keep_float)
    with quietly():
        # here, since its import makes every library's INFO lines appear, its own for good
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.ERROR)

        quantizer = MatMulNBitsQuantizer(
            model, block_size=BLOCK, is_symmetric=True, bits=bits,
            nodes_to_exclude=list(keep_float),
        )  # fmt: skip
        quantizer.process()
    onnx.save(quantizer.model.model, target)


def store_bfloat16(source: Path, target: Path, *, keep_float: Collection[str] = ()) -> None:
    """Matrices and tables in bfloat16, half the bytes; an engine widens them once, on loading.

    Rounded to nearest, ties to even: a relative error of at most 2^-8, the range of fp32.

    Args:
        keep_float: names of nodes whose weights stay as they are.
    """
    model = onnx.load(source)
    graph = model.graph
    spared = {i for n in graph.node if n.name in keep_float for i in n.input}
    wanted = {w.weight for w in weighted_nodes(model)} - spared
    for tensor in [t for t in graph.initializer if t.name in wanted]:
        name = tensor.name
        small = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
        tensor.CopyFrom(numpy_helper.from_array(small, f"{name}_bf16"))
        graph.node.insert(0, helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT,
                                              name=f"{name}_widen"))  # fmt: skip
    onnx.save(model, target)
