"""Teacher logits on disk: fp16, keyed by the text, never whole in memory.

``logits.npy`` holds ``[texts, classes]``, ``keys.npy`` the sha256 of each text. Both are
memory-mapped, so a million rows cost no more memory than the batch at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tasks.errors import IntegrityError


def key(text: str) -> bytes:
    """What a text is found by."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def write(
    folder: Path,
    texts: Sequence[str],
    classes: int,
    logits_of: Callable[[Sequence[str]], np.ndarray],
    *,
    chunk: int = 2048,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Run `logits_of` over the distinct texts, chunk by chunk; returns how many there were."""
    distinct = sorted({key(text): text for text in texts}.items())
    folder.mkdir(parents=True, exist_ok=True)
    shape = (len(distinct), classes)
    logits = np.lib.format.open_memmap(folder / "logits.npy", "w+", np.float16, shape)
    np.save(folder / "keys.npy", np.array([k for k, _ in distinct], dtype="V32"))
    for start in range(0, len(distinct), chunk):
        part = [text for _, text in distinct[start : start + chunk]]
        logits[start : start + len(part)] = logits_of(part)
        progress(start + len(part), len(distinct))
    logits.flush()
    return len(distinct)


class LogitCache:
    """Rows of a written cache by text."""

    def __init__(self, folder: Path) -> None:
        self._logits = np.load(folder / "logits.npy", mmap_mode="r")
        keys = np.load(folder / "keys.npy", mmap_mode="r")
        self._row = {bytes(k): row for row, k in enumerate(keys)}

    def find(self, texts: Sequence[str]) -> np.ndarray:
        """Row number of each text ``[texts]``.

        Raises:
            IntegrityError: a text was never shown to the teacher.
        """
        try:
            return np.array([self._row[key(text)] for text in texts], dtype=np.int64)
        except KeyError:
            raise IntegrityError(
                "data/teacher_logits: a training text is missing, expected all of them",
                next_command="dvc repro --force teach",
            ) from None

    def rows(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits ``[rows, classes]`` float32."""
        return np.asarray(self._logits[rows], dtype=np.float32)
