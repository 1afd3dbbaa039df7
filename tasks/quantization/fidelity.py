"""What quantisation changed: answers, divergence, and where it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tasks.evaluation.quality import accuracy, log_softmax
from tasks.problems.classification import Row
from tasks.quantization.layers import Weighted
from tasks.runtimes.interface import load
from tasks.runtimes.onnx import OnnxRuntime

DIVERGED = 0.1
"""Relative error of a layer's output from which on it is named in the report."""


@dataclass(frozen=True)
class Fidelity:
    """A quantised form against its own fp32 form, on the same texts."""

    accuracy: float
    kl: float
    """KL(float ‖ quantised) of the answers' distributions, mean per text, in nats."""
    flip_rate: float
    """Share of texts that get another label."""
    drop: float
    """Of accuracy, in points."""

    def within(self, max_loss: float, max_flips: float) -> bool:
        """Whether drop (points) and flips (per cent) keep their limits; NaN keeps none."""
        return self.drop <= max_loss + 1e-9 and 100 * self.flip_rate <= max_flips + 1e-9

    def as_dict(self) -> dict[str, float]:
        """For ``metrics/quantize.json``."""
        return asdict(self)


def compare(exact: np.ndarray, found: np.ndarray, labels: np.ndarray) -> Fidelity:
    """Judge logits ``[texts, classes]`` of a quantised form against those of the fp32 form."""
    right, own = accuracy(exact, labels), accuracy(found, labels)
    flips = float((exact.argmax(-1) != found.argmax(-1)).mean())
    return Fidelity(own, divergence(exact, found), flips, 100 * (right - own))


def divergence(exact: np.ndarray, found: np.ndarray) -> float:
    """KL(exact ‖ found), mean over the rows of logits ``[texts, classes]``, in nats."""
    if not np.isfinite(found).all():
        return float("nan")
    p, q = log_softmax(exact), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def logits_one_by_one(
    path: Path, ids: Sequence[Row], *, weight_bits: int, runtime: str = "onnxruntime"
) -> np.ndarray:
    """Logits ``[texts, classes]`` as a graph serves them: the ranges of a batch are wider."""
    engine = load(path, runtime=runtime, weight_bits=weight_bits)
    rows = [np.array([row], dtype=np.int64) for row in ids]
    found = np.concatenate([engine.run(row, np.ones_like(row)) for row in rows])
    engine.close()
    return found


def first_divergence(
    exact: Path,
    quantised: Path,
    nodes: Sequence[Weighted],
    ids: Sequence[Row],
    *,
    weight_bits: int,
) -> dict[str, Any] | None:
    """The first layer whose output is off by more than `DIVERGED`; None where none is.

    The error is ‖quantised − float‖ / ‖float‖ over all texts; its inputs are those that the
    layers before it gave in each form, so an error that was handed on counts, too.
    """
    names = [node.output for node in nodes if node.output != "logits"]
    tapped = [_tapped(path, names) for path in (exact, quantised)]
    shared = [name for name in names if all(name in made for _, made in tapped)]
    squares = np.zeros((len(shared), 2))
    runtimes = [OnnxRuntime(graph, weight_bits=weight_bits) for graph, _ in tapped]
    for row in ids:
        feed = np.array([row], dtype=np.int64)
        a, b = (runtime.outputs(feed, np.ones_like(feed), shared) for runtime in runtimes)
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            squares[index] += ((x - y) ** 2).sum(), (x**2).sum()
    layer = {node.output: node.layer for node in nodes}
    for name, (error, size) in zip(shared, squares, strict=True):
        relative = float(np.sqrt(error / max(size, 1e-30)))
        if not relative <= DIVERGED:
            return {"layer": layer[name], "error": relative}
    return None


def _tapped(path: Path, names: Sequence[str]) -> tuple[bytes, set[str]]:
    """A graph that also returns the named tensors it has, and which those are."""
    model = onnx.load(path)
    made = {output for node in model.graph.node for output in node.output} & set(names)
    for name in names:
        if name in made:
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
    return model.SerializeToString(), made
