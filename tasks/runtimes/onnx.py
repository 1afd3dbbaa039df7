"""ONNX Runtime behind the interface of `tasks.runtimes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from tasks.processor import saturates
from tasks.runtimes.interface import INPUTS

SLOWER = ["SkipLayerNormFusion"]
"""Fusions whose kernel takes longer than what it replaces: on a CPU an addition and a norm by
themselves take a third of the time (infra/decisions/export-for-serving.md)."""


PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]


class OnnxRuntime:
    """An ONNX classifier: token ids in, logits out.

    Args:
        model: the ``.onnx`` file, or what is in one.
        threads: threads inside one operator.
        weight_bits: of int8 weights that the file was made with. All eight overflow where a
            processor adds products in 16 bits; there ONNX Runtime is told to take its exact
            path, so that a file answers the same on every machine
            (infra/decisions/same-answers-everywhere.md).
        gpu: on a GPU where this ONNX Runtime can; *unverified on a GPU*.
    """

    def __init__(
        self, model: Path | bytes, *, threads: int = 1, weight_bits: int = 8, gpu: bool = False
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if weight_bits > 7 and saturates():
            options.add_session_config_entry("session.x64quantprecision", "1")
        self._session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=[
                one for one in PROVIDERS[0 if gpu else 1 :] if one in ort.get_available_providers()
            ],
            disabled_optimizers=SLOWER,
        )
        self._takes = [one.name for one in self._session.get_inputs()]
        self._makes = [one.name for one in self._session.get_outputs()]

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Logits ``[batch, classes]`` float32 for ids and mask ``[batch, length]`` int64."""
        feeds = dict(zip(INPUTS, (input_ids, attention_mask), strict=True))
        return np.asarray(self._session.run(None, feeds)[0])

    def outputs(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, names: Sequence[str]
    ) -> list[np.ndarray]:
        """Other outputs of the graph, by name."""
        feeds = dict(zip(INPUTS, (input_ids, attention_mask), strict=True))
        return [np.asarray(output) for output in self._session.run(list(names), feeds)]

    def feed(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name, in the graph's order, for those of the inputs that it takes."""
        found = self._session.run(self._makes, {name: inputs[name] for name in self._takes})
        return dict(zip(self._makes, found, strict=True))

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
