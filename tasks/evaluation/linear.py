"""The model that every student has to beat: TF-IDF of words and characters, one linear layer.

Settings were chosen on Banking77's validation split among word 1..3-grams, characters 2..6 and
C from 0.3 to 1; the smallest of the best was taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from tasks.errors import IntegrityError, UnavailableError
from tasks.evaluation.footprint import linear_flops

WORDS = {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}
CHARACTERS = {"analyzer": "char_wb", "ngram_range": (2, 4)}
MAX_FEATURES = 200_000
PENALTY = 0.5
UNSEEN = -10.0
"""Margin of a class that the training texts lack; a seen one is rarely under -3."""


@dataclass(frozen=True)
class LinearModel:
    """A fitted classifier; text in, label out."""

    vectorizers: tuple[TfidfVectorizer, ...]
    weights: tuple[np.ndarray, ...]
    """One ``[features, classes]`` float32 per vectorizer."""
    bias: np.ndarray
    """``[classes]`` float32."""
    names: tuple[str, ...]
    temperature: float = 1.0
    """Margins are divided by it; fitted on validation, moves no label."""

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        labels: np.ndarray,
        names: Sequence[str],
        *,
        seed: int,
        validation: tuple[Sequence[str], np.ndarray] | None = None,
    ) -> LinearModel:
        """Fit on training texts, then one temperature on validation.

        Args:
            texts, labels: ``[n]`` texts and their integer labels.
            names: class names; their number fixes the width of the logits.
            seed: of the solver.
            validation: texts and labels for the temperature; None leaves it at 1.
        """
        vectorizers = tuple(
            TfidfVectorizer(**kind, sublinear_tf=True, max_features=MAX_FEATURES, dtype=np.float32)
            for kind in (WORDS, CHARACTERS)
        )
        blocks = [vectorizer.fit_transform(texts) for vectorizer in vectorizers]
        svc = LinearSVC(C=PENALTY, random_state=seed)
        svc.fit(hstack(blocks, format="csr"), labels)
        weights, bias = _per_class(svc, len(names))
        cuts = np.cumsum([block.shape[1] for block in blocks])[:-1]
        parts = tuple(np.ascontiguousarray(part) for part in np.split(weights, cuts))
        model = cls(vectorizers, parts, bias, tuple(names))
        if validation is None:
            return model
        found = _temperature(model.logits(validation[0]), np.asarray(validation[1]))
        return cls(vectorizers, parts, bias, tuple(names), found)

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Margins over the temperature, ``[n, classes]`` float32."""
        margins = sum(
            vectorizer.transform(texts) @ part
            for vectorizer, part in zip(self.vectorizers, self.weights, strict=True)
        )
        return np.asarray((margins + self.bias) / np.float32(self.temperature))

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        return [self.names[i] for i in self.logits(texts).argmax(axis=1)]

    def save(self, path: Path) -> int:
        """Write everything that answering needs into one file; returns its bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        joblib.dump(self, path)
        return path.stat().st_size

    @staticmethod
    def load(path: Path) -> LinearModel:
        """Read what `save` wrote. It is a pickle: only for files of one's own run.

        Raises:
            UnavailableError: there is no such file.
            IntegrityError: it holds something else.
        """
        try:
            model: Any = joblib.load(path)
        except FileNotFoundError:
            raise UnavailableError(
                f"{path}: no such file, expected a linear model",
                next_command="dvc repro --force validate",
            ) from None
        if not isinstance(model, LinearModel):
            raise IntegrityError(
                f"{path}: found {type(model).__name__}, expected a linear model",
                next_command="dvc repro --force validate",
            )
        return model

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return sum(part.size for part in self.weights) + self.bias.size

    def flops(self, texts: Sequence[str]) -> int:
        """Mean floating-point operations per text, of the matrix product alone."""
        nonzeros = sum(vectorizer.transform(texts).nnz for vectorizer in self.vectorizers)
        return linear_flops(nonzeros / len(texts), len(self.names))


def _per_class(svc: LinearSVC, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``[features, width]`` and biases ``[width]``, a column for every class."""
    coef, intercept = svc.coef_, svc.intercept_
    if len(svc.classes_) == 2:
        coef, intercept = np.vstack([-coef, coef]), np.concatenate([-intercept, intercept])
    weights = np.zeros((coef.shape[1], width), dtype=np.float32)
    bias = np.full(width, UNSEEN, dtype=np.float32)
    weights[:, svc.classes_] = coef.T
    bias[svc.classes_] = intercept
    return weights, bias


def _temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What to divide logits by for the least NLL (Guo et al. 2017, temperature scaling).

    1 where all texts are answered rightly: there is no least.
    """
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        top = scaled.max(axis=1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float((total - scaled[rows, labels]).mean())

    if (logits.argmax(axis=1) == labels).all():
        return 1.0
    return float(np.exp(minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded").x))
