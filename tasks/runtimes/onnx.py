"""ONNX Runtime behind the interface of `tasks.runtimes`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

INPUTS = ("input_ids", "attention_mask")


class OnnxRuntime:
    """An ONNX classifier: token ids in, logits out.

    Args:
        path: the ``.onnx`` file.
        threads: threads inside one operator.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Logits ``[batch, classes]`` float32 for ids and mask ``[batch, length]`` int64."""
        feeds = dict(zip(INPUTS, (input_ids, attention_mask), strict=True))
        return np.asarray(self._session.run(None, feeds)[0])

    def describe(self) -> dict[str, Any]:
        """Name, version and provider, for reports."""
        return {
            "runtime": "onnxruntime",
            "version": ort.__version__,
            "provider": self._session.get_providers()[0],
        }

    def close(self) -> None:
        """Free the session."""
        self._session = None
