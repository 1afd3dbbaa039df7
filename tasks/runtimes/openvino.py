"""OpenVINO behind the interface of `tasks.runtimes`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tasks.runtimes.interface import INPUTS


def missing() -> str | None:
    """Why it cannot run here; None where it can."""
    return None if find_spec("openvino") else "not installed: pip install openvino"


class OpenVinoRuntime:
    """An ONNX classifier on the CPU: token ids in, logits out.

    What is not int8 is computed in fp32, also where the processor has faster half-precision
    kernels: a file answers the same on every machine.

    Args:
        model: the ``.onnx`` file.
        threads: of the one stream that answers.
    """

    def __init__(self, model: Path, *, threads: int = 1) -> None:
        import openvino

        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        self._version: str = openvino.__version__
        self._request = (
            openvino.Core().compile_model(str(model), "CPU", options).create_infer_request()
        )

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Logits ``[batch, classes]`` float32 for ids and mask ``[batch, length]`` int64."""
        feeds = dict(zip(INPUTS, (input_ids, attention_mask), strict=True))
        return np.array(self._request.infer(feeds)[0], dtype=np.float32)

    def describe(self) -> dict[str, Any]:
        """Name, version and provider, for reports."""
        return {"runtime": "openvino", "version": self._version, "provider": "CPU"}

    def close(self) -> None:
        """Free the compiled model."""
        del self._request
