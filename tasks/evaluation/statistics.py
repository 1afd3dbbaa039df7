"""What a difference between two models is worth on a test set of this size.

Teacher and candidate answer the same rows, so everything here is paired. Drops are in points
of 100; a positive drop means that the candidate is worse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its two-sided 95 % interval."""

    point: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassDrop:
    """The recall that one class lost, in points."""

    label: int
    n: int
    """Test rows of that class."""
    point: float
    """As counted."""
    shrunken: float
    """Drawn towards the overall drop."""
    lower: float
    """Lower confidence bound of `shrunken`, corrected for the number of judged classes."""


@dataclass(frozen=True)
class ClassDrops:
    """Every judged class, by label."""

    overall: float
    """Drop over all rows, in points."""
    classes: tuple[ClassDrop, ...]

    @property
    def worst(self) -> ClassDrop | None:
        """The class with the largest lower bound; None when no class has rows enough."""
        return max(self.classes, key=lambda drop: drop.lower, default=None)

    @property
    def worst_drop(self) -> float:
        """What the gate judges, in points: the worst lower bound.

        Where no class has rows enough, full shrinkage leaves the overall drop.
        """
        return self.worst.lower if self.worst else self.overall


def paired_bootstrap(
    teacher_correct: np.ndarray, candidate_correct: np.ndarray, *, resamples: int, seed: int
) -> Interval:
    """Drop in points with its percentile interval; both arguments ``[n]`` bool, paired.

    Percentile bootstrap over rows (Efron & Tibshirani 1993, ch. 13). A row contributes only
    -1, 0 or 1, so a resample of rows is one multinomial draw of three counts, exactly. What was
    never seen is never drawn: where no row was lost, the upper end allows for `unseen`, and where
    none was won, the lower end.

    Raises:
        ValueError: the arguments are empty or differ in length.
    """
    teacher, candidate = _paired(teacher_correct, candidate_correct)
    n = len(teacher)
    lost, won = (teacher & ~candidate).sum(), (~teacher & candidate).sum()
    counts = np.random.default_rng(seed).multinomial(
        n, np.array([lost, won, n - lost - won]) / n, size=resamples
    )
    found = _percentiles(100.0 * (lost - won) / n, 100.0 * (counts[:, 0] - counts[:, 1]) / n)
    return Interval(
        found.point,
        found.low if won else min(found.low, found.point - 100.0 * unseen(n)),
        found.high if lost else max(found.high, found.point + 100.0 * unseen(n)),
    )


def unseen(n: int) -> float:
    """The largest share of rows of a kind that ``n`` rows may well have none of.

    Upper end of the exact two-sided 95 % interval (Clopper & Pearson 1934) for zero of ``n``.
    """
    return float(1.0 - (0.5 * (1.0 - CONFIDENCE)) ** (1.0 / n))


def retained_interval(
    teacher_correct: np.ndarray, candidate_correct: np.ndarray, *, resamples: int, seed: int
) -> Interval:
    """Candidate's accuracy as a share of the teacher's, with its percentile interval.

    Exact multinomial draws of the four cells, as in `paired_bootstrap`, and as there the ends
    allow for what was not seen. NaN where the teacher is never right.
    """
    teacher, candidate = _paired(teacher_correct, candidate_correct)
    n = len(teacher)
    cells = np.array(
        [
            (teacher & candidate).sum(),
            (teacher & ~candidate).sum(),
            (~teacher & candidate).sum(),
            (~teacher & ~candidate).sum(),
        ]
    )
    if not teacher.any():
        return Interval(math.nan, math.nan, math.nan)
    both, lost, won, _ = np.random.default_rng(seed).multinomial(n, cells / n, size=resamples).T
    right = both + lost
    ratios = (both + won)[right > 0] / right[right > 0]
    found = _percentiles(candidate.sum() / teacher.sum(), ratios)
    reach = unseen(n) / teacher.mean()
    return Interval(
        found.point,
        found.low if cells[1] else max(min(found.low, found.point - reach), 0.0),
        found.high if cells[2] else max(found.high, found.point + reach),
    )


def flip_rate(teacher_predictions: np.ndarray, candidate_predictions: np.ndarray) -> float:
    """Share of rows that the two answer differently, rightly or wrongly.

    Raises:
        ValueError: the arguments are empty or differ in length.
    """
    if teacher_predictions.shape != candidate_predictions.shape or not len(teacher_predictions):
        raise ValueError(
            f"found {teacher_predictions.shape} and {candidate_predictions.shape} predictions, "
            "expected two equal lengths over 0"
        )
    return float((teacher_predictions != candidate_predictions).mean())


def discordance(teacher_correct: np.ndarray, candidate_correct: np.ndarray) -> float:
    """Share of rows on which exactly one of the two is right; never above the flip rate."""
    teacher, candidate = _paired(teacher_correct, candidate_correct)
    return float((teacher != candidate).mean())


def detectable_drop(
    n: int, discordance: float, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Smallest drop, in points, that ``n`` paired rows show with this power.

    McNemar's test, two-sided, solved for the difference δ at a share ψ of discordant rows
    (Connor 1987, Biometrics 43:207; Miettinen 1968):
    ``n = (z_{1-α/2} √ψ + z_{power} √(ψ - δ²))² / δ²``. A drop of δ needs at least δ discordant
    rows, so ψ is raised to δ where it is smaller. With the flip rate as ψ the answer is an upper
    bound.

    Raises:
        ValueError: no rows, or a discordance outside [0, 1].
    """
    if n < 1 or not 0.0 <= discordance <= 1.0:
        raise ValueError(f"found n={n}, discordance={discordance}, expected n ≥ 1 and a share")
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    root = math.sqrt(max(n - z_alpha**2 + z_power**2, 0.0))
    slope = (z_alpha * math.sqrt(n) + z_power * root) / (n + z_power**2)
    return 100.0 * min(slope * math.sqrt(max(discordance, slope**2)), 1.0)


def shrunken_class_drops(
    teacher_correct: np.ndarray,
    candidate_correct: np.ndarray,
    labels: np.ndarray,
    *,
    min_rows: int,
    prior_rows: float,
    alpha: float = 1 - CONFIDENCE,
) -> ClassDrops:
    """Recall lost per class, shrunken, with a bound that chance in many classes rarely lifts.

    A class of ``n`` rows keeps ``w = n / (n + prior_rows)`` of its own drop and takes the rest
    from the overall one (Efron & Morris 1975). Its variance is blended in the same way, so that
    a class with no disagreement is not taken for certain. The lower bound is one-sided normal at
    ``alpha`` divided by the number of judged classes (Bonferroni).

    Args:
        teacher_correct, candidate_correct: ``[n]`` bool, paired.
        labels: ``[n]`` integers.
        min_rows: classes with fewer rows are left out.
        prior_rows: strength of the shrinkage, in rows.
    """
    teacher, candidate = _paired(teacher_correct, candidate_correct)
    loss = teacher.astype(np.float64) - candidate.astype(np.float64)
    names, sizes = np.unique(labels, return_counts=True)
    judged = [(int(k), int(n)) for k, n in zip(names, sizes, strict=True) if n >= min_rows]
    z = NormalDist().inv_cdf(1 - alpha / max(len(judged), 1))
    overall, spread = float(loss.mean()), float(loss.var())
    drops = []
    for label, n in judged:
        own = loss[labels == label]
        weight = n / (n + prior_rows)
        shrunken = weight * float(own.mean()) + (1 - weight) * overall
        variance = weight * float(own.var()) + (1 - weight) * spread
        lower = shrunken - z * weight * math.sqrt(variance / n)
        drops.append(
            ClassDrop(label, n, 100.0 * float(own.mean()), 100.0 * shrunken, 100.0 * lower)
        )
    return ClassDrops(100.0 * overall, tuple(drops))


def _paired(teacher: np.ndarray, candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if teacher.ndim != 1 or teacher.shape != candidate.shape or not len(teacher):
        raise ValueError(
            f"found shapes {teacher.shape} and {candidate.shape}, expected two equal lengths over 0"
        )
    return teacher.astype(bool), candidate.astype(bool)


def _percentiles(point: float, draws: np.ndarray) -> Interval:
    tail = 50.0 * (1 - CONFIDENCE)
    low, high = np.percentile(draws, [tail, 100.0 - tail])
    return Interval(float(point), float(low), float(high))
