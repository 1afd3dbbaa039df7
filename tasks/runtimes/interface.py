"""The engines that a servable folder may name, and how one of them is opened."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tasks.processor import saturates

INPUTS = ("input_ids", "attention_mask")
"""What every graph takes, ``[batch, length]`` int64 each."""
LONGEST = "max_length"
"""Property of a graph: the length in pieces that its position table reaches to."""
NAMES = ("onnxruntime", "openvino", "tensorrt")
"""All read the same ``model.onnx``; the first is always there."""


class Runtime(Protocol):
    """An engine with a model in it."""

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Logits ``[batch, classes]`` float32 for ids and mask ``[batch, length]`` int64."""
        ...

    def describe(self) -> dict[str, Any]:
        """Name, version and provider, for reports."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


def missing(name: str, *, weight_bits: int = 8) -> str | None:
    """Why this machine cannot run an engine; None where it can.

    Args:
        name: one of `NAMES`.
        weight_bits: of int8 weights. OpenVINO has no exact path where sums of eight-bit
            products saturate, so it is not let near them
            (infra/decisions/same-answers-everywhere.md).
    """
    match name:
        case "openvino":
            from tasks.runtimes import openvino

            if (fault := openvino.missing()) is None and weight_bits > 7 and saturates():
                return "eight-bit weights overflow in OpenVINO on this processor"
            return fault
        case "tensorrt":
            from tasks.runtimes import tensorrt

            return tensorrt.missing()
    return None


def load(
    model: Path, *, runtime: str = "onnxruntime", threads: int = 1, weight_bits: int = 8
) -> Runtime:
    """Open a model in the engine named, or in ONNX Runtime where that one cannot run here.

    A stand-in answers from the same file; ``describe()`` names it, and a line is logged. For a
    GPU's engine it computes on the GPU, too, where this ONNX Runtime can.

    Args:
        model: the ``.onnx`` file.
        threads: of the engine, inside one operator.
        weight_bits: how far int8 weights reach, 7 or 8.
    """
    engine, fault = opened(model, runtime=runtime, threads=threads, weight_bits=weight_bits)
    if fault is not None:
        logging.getLogger("stillroom").warning("%s: %s: ONNX Runtime answers", runtime, fault)
    return engine


def opened(
    model: Path, *, runtime: str, threads: int = 1, weight_bits: int = 8
) -> tuple[Runtime, str | None]:
    """What `load` gives, and why that is not the engine named; None where it is."""
    if (fault := missing(runtime, weight_bits=weight_bits)) is None:
        try:
            match runtime:
                case "openvino":
                    from tasks.runtimes.openvino import OpenVinoRuntime

                    return OpenVinoRuntime(model, threads=threads), None
                case "tensorrt":
                    from tasks.runtimes.tensorrt import TensorRtRuntime

                    return TensorRtRuntime(model), None
        except Exception as error:  # whatever an engine raises, the file can still be answered from
            fault = f"{type(error).__name__}: {error}"
    from tasks.runtimes.onnx import OnnxRuntime

    gpu = runtime == "tensorrt"
    return OnnxRuntime(model, threads=threads, weight_bits=weight_bits, gpu=gpu), fault
