"""Teacher and candidate on the same test texts: who is right where, and how sure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from tasks.evaluation.quality import log_softmax
from tasks.evaluation.statistics import ClassDrops

BINS = 10
CONFUSIONS = 20


def mcnemar(teacher: np.ndarray, candidate: np.ndarray) -> dict[str, Any]:
    """Texts that one alone has right, and the exact two-sided p-value that both err alike.

    McNemar 1947 with the binomial distribution; arguments ``[n]`` bool.
    """
    lost, won = int((teacher & ~candidate).sum()), int((~teacher & candidate).sum())
    p_value = float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    return {"teacher_only": lost, "candidate_only": won, "p_value": p_value}


def flips(teacher: np.ndarray, candidate: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Shares of the texts that get another label, by what came of it; arguments ``[n]``."""
    other = teacher != candidate
    return {
        "rate": float(other.mean()),
        "helped": float((other & (candidate == labels)).mean()),
        "hurt": float((other & (teacher == labels)).mean()),
        "both_wrong": float((other & (teacher != labels) & (candidate != labels)).mean()),
    }


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[dict[str, Any]]:
    """Mean confidence and accuracy of the texts in each bin of confidence; empty bins are left out,
    and texts with a logit that is no number.

    Args:
        logits: ``[n, classes]``.
        labels: ``[n]``.
    """
    known = np.isfinite(logits).all(-1)
    confidence = np.exp(log_softmax(logits[known])).max(-1)
    right = logits[known].argmax(-1) == labels[known]
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "low": index / bins,
            "high": (index + 1) / bins,
            "n": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        for index in range(bins)
        if (inside := place == index).any()
    ]


def class_table(
    teacher: np.ndarray,
    candidate: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    judged: ClassDrops,
) -> list[dict[str, Any]]:
    """Recall of every class that has rows; what the gate judges beside it, null where it did not.

    Args:
        teacher, candidate: ``[n]`` answers.
    """
    drops = {drop.label: drop for drop in judged.classes}
    rows = []
    for index, name in enumerate(names):
        mine = labels == index
        if not mine.any():
            continue
        own, theirs = (
            float((candidate[mine] == index).mean()),
            float((teacher[mine] == index).mean()),
        )
        drop = drops.get(index)
        rows.append({
            "label": name, "n": int(mine.sum()), "teacher_recall": theirs, "candidate_recall": own,
            "drop": 100 * (theirs - own), "shrunken": drop and drop.shrunken,
            "lower": drop and drop.lower,
        })  # fmt: skip
    return rows


def confusion_changes(
    teacher: np.ndarray, candidate: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Pairs of label and wrong answer whose counts changed most; at most `CONFUSIONS`.

    Args:
        teacher, candidate: ``[n]`` answers.
    """
    counts = np.zeros((2, len(names), len(names)), dtype=int)
    for which, answers in enumerate((teacher, candidate)):
        np.add.at(counts[which], (labels, answers), 1)
    change = np.abs(counts[1] - counts[0])
    np.fill_diagonal(change, 0)
    order = np.argsort(-change, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [divmod(int(place), len(names)) for place in order]
    return [
        {"label": names[i], "answered": names[j], "teacher": int(counts[0, i, j]),
         "candidate": int(counts[1, i, j])}
        for i, j in pairs if change[i, j]
    ]  # fmt: skip
