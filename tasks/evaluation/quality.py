"""How good a classifier's answers are: accuracy, macro-F1, recall per class, NLL, ECE.

Plain numpy, imported in no time. `tasks.evaluation.hubless` has the same formulas as
`evaluate.Metric`, whose import takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

ECE_BINS = 15


@dataclass(frozen=True)
class Metric:
    """One number about a model, and which way is better."""

    name: str
    value: float
    direction: Literal["higher", "lower"]
    n: int
    """Rows that it was computed on."""


def answered(logits: np.ndarray) -> np.ndarray:
    """The class of each row of ``[n, classes]``; -1, which is none, where one is no number."""
    return np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest logit is the label's."""
    return float((answered(logits) == labels).mean())


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean F1 over the classes that occur among labels or predictions."""
    predictions, classes = answered(logits), logits.shape[1]
    hits = np.bincount(labels[predictions == labels], minlength=classes)
    given = np.bincount(predictions[predictions >= 0], minlength=classes)
    both = np.bincount(labels, minlength=classes) + given
    return float((2 * hits[both > 0] / both[both > 0]).mean())


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def ece(logits: np.ndarray, labels: np.ndarray, *, bins: int = ECE_BINS) -> float:
    """Expected calibration error over equal-width bins of confidence, in [0, 1].

    Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3; a bin holds the
    confidences in ``(k / bins, (k + 1) / bins]``.
    """
    confidence = np.exp(log_softmax(logits).max(axis=1))
    correct = answered(logits) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def per_class_recall(predictions: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Recall ``[n_classes]`` in [0, 1]; NaN where no row has that label."""
    rows = np.bincount(labels, minlength=n_classes)
    hits = np.bincount(labels[predictions == labels], minlength=n_classes)
    return np.divide(hits, rows, out=np.full(n_classes, np.nan), where=rows > 0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise log-softmax ``[n, c]`` float64, stable for large logits."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


FORMULAS: dict[str, tuple[Callable[..., float], Literal["higher", "lower"]]] = {
    "accuracy": (accuracy, "higher"),
    "macro_f1": (macro_f1, "higher"),
    "nll": (nll, "lower"),
    "ece": (ece, "lower"),
}
"""In the order of reports; the first one is primary."""


def metrics(logits: np.ndarray, labels: np.ndarray) -> list[Metric]:
    """All metrics of ``logits [n, c]`` against integer ``labels [n]``, the primary one first.

    Raises:
        ValueError: nothing to judge, shapes that do not fit, or a label without a logit.
    """
    check(logits, labels)
    return [
        Metric(name, formula(logits, labels), direction, len(labels))
        for name, (formula, direction) in FORMULAS.items()
    ]


def quality(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``accuracy``, ``macro_f1``, ``nll`` and ``ece``; arguments and errors as in `metrics`."""
    return {metric.name: metric.value for metric in metrics(logits, labels)}


def check(logits: np.ndarray, labels: np.ndarray) -> None:
    """Raise ValueError unless there are rows, shapes fit and every label has a logit."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"found logits {logits.shape} and labels {labels.shape}, expected [n, c] and [n], n > 0"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"found label {labels.max()}, expected less than {logits.shape[1]}")
