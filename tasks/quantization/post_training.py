"""Dynamic post-training quantisation of an ONNX graph with ONNX Runtime's own tools."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic


def quantize(
    source: Path,
    target: Path,
    *,
    per_channel: bool,
    embeddings: bool,
    reduce_range: bool,
    keep_float: Collection[str] = (),
) -> None:
    """int8 weights, activations quantised on the fly.

    Args:
        per_channel: one scale for each output channel instead of one for each matrix.
        embeddings: store tables that are read by Gather as int8, too.
        reduce_range: 7-bit weights, for CPUs whose int8 products saturate (AVX2 without VNNI).
        keep_float: names of nodes that stay as they are.
    """
    # a Gemm becomes a MatMul of a longer name before names are looked at
    operators = ["MatMul", "Gemm", "Attention"] + (["Gather"] if embeddings else [])
    with quietly():
        quantize_dynamic(
            source, target, op_types_to_quantize=operators, per_channel=per_channel,
            reduce_range=reduce_range, weight_type=QuantType.QInt8,
            nodes_to_exclude=[*keep_float, *(f"{name}_MatMul" for name in keep_float)],
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
        )  # fmt: skip


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """The quantisers advise on the root logger, and warn of what is meant."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
