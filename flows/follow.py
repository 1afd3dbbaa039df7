"""A growing ``history.jsonl``, followed while a stage writes it.

The stage rewrites the file whole and knows nothing of who reads along.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tasks.stage_files import read_rows

EVERY_S = 0.5


class Following:
    """Hands on new rows of a file until left, and what is still there then.

    What the file held before is left alone until it is rewritten: it is another run's.

    Args:
        path: the file; need not exist.
        sink: called on a thread of its own, with the rows that are new.
    """

    def __init__(self, path: Path, sink: Callable[[Sequence[dict[str, Any]]], None]) -> None:
        self._path, self._sink = path, sink
        self._seen, self._count = self._stamp(), 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="following", daemon=True)

    def __enter__(self) -> Following:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._done.wait(EVERY_S):
            self._look()
        self._look()

    def _look(self) -> None:
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return
        self._seen = stamp
        rows = read_rows(self._path)
        if len(rows) > self._count:
            self._sink(rows[self._count :])
            self._count = len(rows)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size
