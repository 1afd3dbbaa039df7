"""Teacher logits on disk: fp16, keyed by the text, never whole in memory.

keys.npy           sha256 of each distinct text, ascending
logits.npy         ``[texts, classes]`` fp16, in the same order
extra.parquet      the texts that are not of the training split, in column ``text``

Writing sorts by key in a scratch database beside the files; reading maps them into memory and
searches. Either way a million rows cost no more memory than the batch at hand.
"""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import IntegrityError

KEY = np.dtype("V32")
EXTRA = pa.schema([("text", pa.string())])
BATCH = 8192
"""Rows that are in memory at a time; also those of a row group."""


def key(text: str) -> bytes:
    """What a text is found by."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def write(
    folder: Path,
    texts: Iterable[str],
    classes: int,
    logits_of: Callable[[Sequence[str]], np.ndarray],
    *,
    extra: Iterable[str] = (),
    chunk: int = 2048,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Run `logits_of` over the distinct texts in the order of their keys, chunk by chunk.

    Args:
        texts: of the training split.
        extra: further texts. What is none of `texts` goes to ``extra.parquet``, once.
        progress: called after each chunk with the texts done and all texts.

    Returns:
        How many distinct texts there were, extra ones included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder) as room,  # not in /tmp, which may be memory
        closing(_scratch(Path(room) / "texts.db")) as scratch,
    ):
        for _ in _add(scratch, texts):
            pass
        _write_extra(folder / "extra.parquet", _add(scratch, extra))
        (total,) = scratch.execute("SELECT count(*) FROM texts").fetchone()
        rows = scratch.execute("SELECT key, text FROM texts ORDER BY key")
        with (folder / "keys.npy").open("wb") as keys, (folder / "logits.npy").open("wb") as out:
            _header(keys, KEY, (total,))
            _header(out, np.dtype(np.float16), (total, classes))
            done = 0
            while part := rows.fetchmany(chunk):
                keys.write(b"".join(k for k, _ in part))
                logits = logits_of([text for _, text in part])
                assert logits.shape == (len(part), classes)
                out.write(logits.astype(np.float16).tobytes())
                done += len(part)
                progress(done, total)
    return int(total)


def extra_texts(folder: Path) -> Iterator[str]:
    """The texts of a cache that are not of the training split, a row group at a time."""
    return stored_texts(folder / "extra.parquet")


def asked_texts(train: Path, folder: Path) -> Iterator[str]:
    """The texts of the training split, then those of a cache that are not of it."""
    yield from stored_texts(train)
    yield from extra_texts(folder)


def extra_rows(folder: Path) -> int:
    """How many `extra_texts` there are; reads the file's footer alone."""
    return int(pq.read_metadata(folder / "extra.parquet").num_rows)


def stored_texts(path: Path) -> Iterator[str]:
    """Column ``text`` of a Parquet file, a batch at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH, columns=["text"]):
            yield from batch.column(0).to_pylist()


class LogitCache:
    """Rows of a written cache by text."""

    def __init__(self, folder: Path) -> None:
        self._logits = np.load(folder / "logits.npy", mmap_mode="r")
        keys = np.load(folder / "keys.npy", mmap_mode="r")
        # four big-endian numbers are ordered as the 32 bytes are, zeros at the end included
        self._keys = np.asarray(keys).view(">u8").reshape(-1, 4)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, texts: Iterable[str]) -> np.ndarray:
        """Row number of each text ``[texts]`` int64; a batch of them is in memory at a time.

        Raises:
            IntegrityError: a text was never shown to the teacher.
        """
        found, rest = [np.empty(0, dtype=np.int64)], iter(texts)
        while part := list(islice(rest, BATCH)):
            digests = b"".join(map(key, part))
            wanted = np.frombuffer(digests, dtype=">u8").reshape(-1, 4)
            rows = lower_bound(self._keys, wanted)
            inside = rows < len(self)
            known = np.zeros(len(part), dtype=bool)
            known[inside] = (self._keys[rows[inside]] == wanted[inside]).all(axis=1)
            if not known.all():
                raise IntegrityError(
                    f"data/teacher_logits: found nothing for {part[int(known.argmin())][:60]!r}, "
                    "expected all training texts",
                    next_command="dvc repro --force teach",
                )
            found.append(rows)
        return np.concatenate(found)

    def rows(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits ``[rows, classes]`` float32."""
        return np.asarray(self._logits[rows], dtype=np.float32)


def lower_bound(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """First row of `keys` that is not less than each row of `wanted`, by binary search.

    `numpy.searchsorted` has no order for rows of several columns, and would copy what is
    mapped; this touches ``log2(len(keys))`` rows for each that is wanted.

    Args:
        keys: ``[rows, columns]``, ascending, the first column counting most.
        wanted: ``[n, columns]``.

    Returns:
        ``[n]`` int64; ``len(keys)`` where all are less.
    """
    low = np.zeros(len(wanted), dtype=np.int64)
    high = np.full(len(wanted), len(keys), dtype=np.int64)
    while (searching := np.flatnonzero(low < high)).size:
        middle = (low[searching] + high[searching]) // 2
        found, target = keys[middle], wanted[searching]
        first = (found != target).argmax(axis=1)[:, None]  # the column that decides
        less = np.take_along_axis(found, first, 1) < np.take_along_axis(target, first, 1)
        less = less[:, 0]
        low[searching[less]] = middle[less] + 1
        high[searching[~less]] = middle[~less]
    return low


def _scratch(path: Path) -> sqlite3.Connection:
    """An empty database that keeps texts in the order of their keys, and few of them in memory."""
    database = sqlite3.connect(path, isolation_level=None)
    # it does not outlive this process: no journal, no waiting for the disk
    for line in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-16384"):
        database.execute(f"PRAGMA {line}")
    database.execute("CREATE TABLE texts (key BLOB PRIMARY KEY, text TEXT) WITHOUT ROWID")
    return database


def _add(scratch: sqlite3.Connection, texts: Iterable[str]) -> Iterator[str]:
    """Store texts; yields those that were not there."""
    scratch.execute("BEGIN")
    for text in texts:
        added = scratch.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", (key(text), text))
        if added.rowcount:
            yield text
    scratch.execute("COMMIT")


def _write_extra(path: Path, texts: Iterator[str]) -> None:
    with pq.ParquetWriter(path, EXTRA) as out:
        while part := list(islice(texts, BATCH)):
            out.write_table(pa.table({"text": pa.array(part, pa.string())}, EXTRA))


def _header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Begin a ``.npy`` file whose rows follow one by one, as `numpy.save` would."""
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, described)
