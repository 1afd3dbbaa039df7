"""The forms that a model can be served in, each from the same fp32 graph."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from tasks import schema
from tasks.hardware import Profile
from tasks.problems.classification import Row
from tasks.quantization import post_training
from tasks.quantization.static import quantize_with_ranges
from tasks.quantization.weight_only import quantize_weights, store_bfloat16


def write_form(
    source: Path,
    target: Path,
    config: schema.Quantize,
    profile: Profile,
    *,
    calibration: Sequence[Row],
    keep_float: Collection[str] = (),
) -> None:
    """Write the graph that `quantize.scheme` names.

    Args:
        source: fp32, as exported.
        calibration: piece ids of training texts, for ``static``.
        keep_float: names of nodes that stay fp32.
    """
    match config.scheme:
        case "none":
            shutil.copyfile(source, target)
        case "half":
            half = convert_float_to_float16(
                onnx.load(source), keep_io_types=True, node_block_list=list(keep_float)
            )
            onnx.save(half, target)
        case "bf16":
            store_bfloat16(source, target, keep_float=keep_float)
        case "weight_only":
            quantize_weights(source, target, bits=config.bits, embeddings=config.embeddings,
                             keep_float=keep_float)  # fmt: skip
        case "static":
            quantize_with_ranges(source, target, calibration, config, profile,
                                 keep_float=keep_float)  # fmt: skip
        case "dynamic":
            post_training.quantize(
                source, target, per_channel=config.per_channel, embeddings=config.embeddings,
                reduce_range=profile.reduce_range, keep_float=keep_float,
            )  # fmt: skip


def precision(config: schema.Quantize) -> str:
    """Of the weights, as ``serving.json`` and the report name it."""
    names = {
        "none": "fp32",
        "half": "fp16",
        "bf16": "bf16 weights",
        "weight_only": f"int{config.bits} weights",
    }
    return names.get(config.scheme, "int8")


def weight_bits(config: schema.Quantize, profile: Profile) -> int:
    """How far int8 weights reach: 8 only where products of whole bytes are summed."""
    return 8 if config.scheme in ("dynamic", "static") and not profile.reduce_range else 7
