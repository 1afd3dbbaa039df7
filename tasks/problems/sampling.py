"""Some of many rows: a file may be sorted by label, so its first rows stand for nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def evenly(total: int, count: int) -> np.ndarray:
    """Positions of at most `count` of `total` rows, spread from one end to the other."""
    count = min(count, total)
    return np.arange(count) * total // max(count, 1)


def by_chance(total: int, count: int, seed: int) -> np.ndarray:
    """Positions of at most `count` of `total` rows, drawn without replacement, in order."""
    return np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))


def spread(texts: Sequence[str], count: int) -> list[str]:
    """At most `count` texts, `evenly`."""
    return [texts[position] for position in evenly(len(texts), count)]
