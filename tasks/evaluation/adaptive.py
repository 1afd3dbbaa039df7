"""Accuracy against mean latency where depth follows the input, over the confidence asked for.

What is served is chosen on validation by `choose`; the curve on test is a report of what other
choices would have given.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.evaluation.quality import accuracy
from tasks.release.servable import Servable
from tasks.release.stages import NEVER, sure

CURVE = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, NEVER)
"""Confidences of the report."""
CHOICES = (*(round(0.01 * n, 2) for n in range(30, 100)), 0.995, 0.999, NEVER)
"""Confidences that one is chosen from, ascending."""
WARMUP = 5


def depths(logits: np.ndarray, confidence: float) -> np.ndarray:
    """Which exit each text stops at, ``[texts]``, from 0.

    Args:
        logits: ``[exits, texts, classes]``, the last exit being the end.
    """
    stops = np.stack([sure(rows, confidence) for rows in logits])
    stops[-1] = True
    return np.asarray(stops.argmax(0))


def answers(logits: np.ndarray, confidence: float) -> np.ndarray:
    """Logits ``[texts, classes]`` of the exit at which each text stops."""
    return np.asarray(logits[depths(logits, confidence), np.arange(logits.shape[1])])


def tradeoff(logits: np.ndarray, labels: np.ndarray, confidence: float) -> dict[str, Any]:
    """Accuracy at a confidence, and the share of the texts that stop at each exit."""
    stopped = np.bincount(depths(logits, confidence), minlength=len(logits))
    return {
        "confidence": confidence,
        "accuracy": accuracy(answers(logits, confidence), labels),
        "share": [float(count / len(labels)) for count in stopped],
    }


def choose(logits: np.ndarray, labels: np.ndarray, max_loss: float) -> float:
    """The least of `CHOICES` that loses at most `max_loss` points against full depth.

    It and all above it do, so that a lucky threshold among worse ones is not taken.
    """
    least = accuracy(logits[-1], labels) - max_loss / 100 - 1e-9
    chosen = NEVER
    for confidence in reversed(CHOICES):
        if tradeoff(logits, labels, confidence)["accuracy"] < least:
            break
        chosen = confidence
    return chosen


def adaptive_depth(
    servable: Servable,
    texts: Sequence[str],
    labels: np.ndarray,
    names: Sequence[str],
    *,
    timed: Sequence[str],
    rounds: int,
) -> list[dict[str, Any]]:
    """``adaptive_depth`` of the evidence: a row for each confidence, ascending.

    Args:
        labels: indices into `names`.
        timed: the texts that the clock is held to.
        rounds: how often.
    """
    order = [servable.labels.index(name) for name in names]
    each = [list(servable.every_exit(*servable.encode([text]))) for text in texts]
    logits = np.stack([np.concatenate(rows) for rows in zip(*each, strict=True)])[:, :, order]
    ms = stage_ms(servable, timed, rounds=rounds)
    served = servable.serving["confidence"]
    return [
        {**row, "latency_ms": float(np.dot(row["share"], ms)), "served": confidence == served}
        for confidence in sorted({*CURVE, served})
        for row in [tradeoff(logits, labels, confidence)]
    ]


def stage_ms(servable: Servable, texts: Sequence[str], *, rounds: int) -> np.ndarray:
    """Milliseconds from a text to the answer of each exit, ``[exits]``.

    The mean over texts of the median over rounds; batch 1, tokenisation included.
    """
    for text in texts[:WARMUP]:
        _walk_ms(servable, text)
    collects = gc.isenabled()
    gc.disable()
    try:
        found = [[_walk_ms(servable, text) for text in texts] for _ in range(rounds)]
    finally:
        if collects:
            gc.enable()
    return np.asarray(np.median(found, axis=0).mean(0))


def _walk_ms(servable: Servable, text: str) -> list[float]:
    begin = time.perf_counter_ns()
    exits = servable.every_exit(*servable.encode([text]))
    return [(time.perf_counter_ns() - begin) / 1e6 for _ in exits]
