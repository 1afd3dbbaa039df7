"""Static post-training quantisation: Q/DQ pairs with ranges that training texts had."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader

from tasks import schema
from tasks.hardware import Profile
from tasks.problems.classification import Row
from tasks.quantization.layers import weighted_nodes
from tasks.quantization.post_training import quietly
from tasks.quantization.tables import tables_to_int8

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class Texts(CalibrationDataReader):
    """Calibration texts as the graph takes them, one at a time: padding would widen no range."""

    def __init__(self, ids: Sequence[Row]) -> None:
        self._ids, self._left = ids, iter(ids)

    def __len__(self) -> int:
        return len(self._ids)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Begin at a text, and end before another."""
        self._left = iter(self._ids[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Inputs of the next text; None after the last."""
        row = next(self._left, None)
        if row is None:
            return None
        ids = np.array([row], dtype=np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def quantize_with_ranges(
    source: Path,
    target: Path,
    ids: Sequence[Row],
    config: schema.Quantize,
    profile: Profile,
    *,
    keep_float: Collection[str] = (),
) -> None:
    """int8 weights (symmetric) and activations (ranges from calibration), as Q/DQ pairs.

    Activations are asymmetric unsigned bytes on a CPU; where the profile asks for symmetric
    ones (TensorRT) they are signed with zero point 0, and weights get an explicit pair, too.

    Args:
        ids: piece ids of the calibration texts.
        keep_float: names of nodes that stay as they are.
    """
    model = onnx.load(source)
    del model.graph.value_info[:]  # stale shapes make the quantiser refuse the graph
    if config.embeddings:
        tables_to_int8(model, keep_float=keep_float)
    options: dict[str, Any] = {
        "ActivationSymmetric": profile.symmetric,
        "WeightSymmetric": True,
        "AddQDQPairToWeight": profile.symmetric,
        "QuantizeBias": not profile.symmetric,  # TensorRT takes no pairs of 32 bits
        "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
        "CalibPercentile": config.calibration.percentile,
        "CalibStridedMinMax": 1,  # for all methods: texts of one length would have to be padded
    }
    # by name: products of two activations, such as attention scores, would be taken, too
    wanted = [n.node for n in weighted_nodes(model)
              if n.operator != "Gather" and n.node not in keep_float]  # fmt: skip
    if not wanted:
        onnx.save(model, target)
        return
    with tempfile.TemporaryDirectory() as room, quietly():
        ready = Path(room) / "tables.onnx"
        onnx.save(model, ready)
        quantize_static(
            ready, target, Texts(ids), quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"], per_channel=config.per_channel,
            reduce_range=profile.reduce_range, nodes_to_quantize=wanted,
            activation_type=QuantType.QInt8 if profile.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8, calibrate_method=METHODS[config.calibration.method],
            extra_options=options,
        )  # fmt: skip
