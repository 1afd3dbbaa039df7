"""The formulas of `quality` as metrics of the `evaluate` package, with no hub behind them.

`evaluate.load("accuracy")` downloads code; these are classes of one's own, computed in memory.
Importing the package costs four seconds (its pipelines bring in transformers), so no stage but
the one that judges on test needs to, and no other module does.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from tasks.evaluation import quality as formulas


class _Offline(evaluate.Metric):
    """A metric of logits ``[n, c]`` against labels ``[n]``."""

    key: str

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(type(self).__doc__),
            citation="",
            inputs_description="predictions: logits; references: labels",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _download_and_prepare(self, dl_manager: Any) -> None:
        """Nothing to download."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        formula, _ = formulas.FORMULAS[self.key]
        return {self.key: formula(np.asarray(predictions), np.asarray(references))}


class Accuracy(_Offline):
    """`quality.accuracy`."""

    key = "accuracy"


class MacroF1(_Offline):
    """`quality.macro_f1`."""

    key = "macro_f1"


class Nll(_Offline):
    """`quality.nll`."""

    key = "nll"


class Ece(_Offline):
    """`quality.ece`."""

    key = "ece"


class PerClassRecall(_Offline):
    """`quality.per_class_recall`; its value is an array ``[c]``."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        logits = np.asarray(predictions)
        labels, classes = np.asarray(references), logits.shape[1]
        return {"recall": formulas.per_class_recall(formulas.answered(logits), labels, classes)}


METRICS: tuple[type[_Offline], ...] = (Accuracy, MacroF1, Nll, Ece)


def quality(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What `quality.quality` gives, through `evaluate`; the same errors."""
    formulas.check(logits, labels)
    found: dict[str, float] = {}
    for kind in METRICS:
        # a fixed seed: without one, the constructor reads numpy's global generator
        metric = kind(keep_in_memory=True, seed=0)
        found |= metric.compute(predictions=logits, references=labels)
    return found
