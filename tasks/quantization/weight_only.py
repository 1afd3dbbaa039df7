"""Weights in four or eight bits, products in fp32: for models that wait for memory."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import onnx

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
