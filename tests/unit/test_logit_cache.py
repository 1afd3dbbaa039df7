"""Cached teacher logits come back for the right text, in little memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import IntegrityError
from tasks.training import logit_cache

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
TEXTS = st.lists(TEXT, min_size=1, max_size=30)
MB = 10**6


def fake_logits(texts: Sequence[str]) -> np.ndarray:
    """Numbers that follow from the text alone."""
    return np.array([[len(t), sum(map(ord, t)) % 97, 1.5] for t in texts], dtype=np.float32)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(TEXTS, TEXTS, st.randoms(use_true_random=False))
def test_every_text_finds_its_own_row(
    tmp_path: Path, texts: list[str], extra: list[str], random: object
) -> None:
    written = logit_cache.write(tmp_path, texts, 3, fake_logits, extra=extra, chunk=7)
    cache = logit_cache.LogitCache(tmp_path)
    assert written == len(cache) == len({*texts, *extra})
    asked = [*texts, *extra]
    random.shuffle(asked)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(cache.rows(cache.find(asked)), fake_logits(asked))


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(TEXTS, TEXTS)
def test_extra_texts_come_back_in_order_each_once(
    tmp_path: Path, texts: list[str], extra: list[str]
) -> None:
    logit_cache.write(tmp_path, iter(texts), 3, fake_logits, extra=iter(extra))
    expected = [text for text in dict.fromkeys(extra) if text not in texts]
    assert list(logit_cache.extra_texts(tmp_path)) == expected
    assert logit_cache.extra_rows(tmp_path) == len(expected)


def test_without_extra_texts_there_is_an_empty_file(tmp_path: Path) -> None:
    logit_cache.write(tmp_path, ["a"], 3, fake_logits)
    assert list(logit_cache.extra_texts(tmp_path)) == []
    assert str(pq.read_schema(tmp_path / "extra.parquet").field("text").type) == "string"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["extra.parquet", "keys.npy", "logits.npy"]


def test_the_stream_is_what_numpy_would_have_saved(tmp_path: Path) -> None:
    texts = [f"text {i % 900}" for i in range(1000)]
    logit_cache.write(tmp_path, texts, 3, fake_logits, chunk=128)
    distinct = sorted((logit_cache.key(text), text) for text in set(texts))
    keys = np.array([key for key, _ in distinct], dtype="V32")
    logits = fake_logits([text for _, text in distinct]).astype(np.float16)
    for name, array in (("keys", keys), ("logits", logits)):
        np.save(tmp_path / "whole.npy", array)
        whole = (tmp_path / "whole.npy").read_bytes()
        assert (tmp_path / f"{name}.npy").read_bytes() == whole


def test_keys_that_end_or_begin_with_zeros_are_found(tmp_path: Path) -> None:
    texts = [str(i) for i in range(3000)]
    keys = [logit_cache.key(text) for text in texts]
    assert any(key.endswith(b"\0") for key in keys)
    assert any(key.startswith(b"\0") for key in keys)
    logit_cache.write(tmp_path, texts, 3, fake_logits)
    found = logit_cache.LogitCache(tmp_path).find(texts)
    order = sorted(range(len(texts)), key=keys.__getitem__)
    np.testing.assert_array_equal(found[order], np.arange(len(texts)))


WORDS = st.lists(st.tuples(*[st.integers(0, 2)] * 4), max_size=40)


@given(WORDS, WORDS)
def test_lower_bound_is_that_of_a_list_of_tuples(
    rows: list[tuple[int, ...]], wanted: list[tuple[int, ...]]
) -> None:
    keys = np.array(sorted(rows), dtype=">u8").reshape(-1, 4)
    found = logit_cache.lower_bound(keys, np.array(wanted, dtype=">u8").reshape(-1, 4))
    assert found.tolist() == [sum(row < one for row in rows) for one in wanted]


def test_a_text_that_the_teacher_never_saw_is_refused(tmp_path: Path) -> None:
    logit_cache.write(tmp_path, ["a", "b"], 3, fake_logits)
    absent = [str(i) for i in range(50)]  # before, between and after the keys that are there
    for text in absent:
        with pytest.raises(IntegrityError, match="teach"):
            logit_cache.LogitCache(tmp_path).find(["a", text])


def test_the_teacher_is_asked_in_chunks(tmp_path: Path) -> None:
    asked: list[int] = []

    def count(texts: Sequence[str]) -> np.ndarray:
        asked.append(len(texts))
        return fake_logits(texts)

    logit_cache.write(tmp_path, [str(i) for i in range(10)], 3, count, chunk=4)
    assert asked == [4, 4, 2]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from tasks.evaluation.footprint import peak_memory_bytes
from tasks.training import logit_cache

folder, rows = Path(sys.argv[1]), int(sys.argv[2])

def logits_of(texts):
    return np.zeros((len(texts), 8), dtype=np.float32)

def texts(name):
    return (f"text number {i} of the {name} split, with some words more" for i in range(rows // 2))

logit_cache.write(folder / "first", ["a"], 8, logits_of, extra=["b"])
before = peak_memory_bytes()
assert logit_cache.write(folder, texts("train"), 8, logits_of, extra=texts("other")) == rows
print(peak_memory_bytes() - before)
"""
"""What writing adds to the peak memory of a process of its own, in bytes."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A cache of 300,000 rows, and what its writing took."""
    folder = tmp_path_factory.mktemp("large")
    done = subprocess.run([sys.executable, "-c", WRITER, str(folder), "300000"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    return folder, int(done.stdout)


def test_writing_holds_no_more_than_a_batch(large: tuple[Path, int]) -> None:
    # measured: 37 MB for 300,000 rows as for 1,000,000, of which 16 MB are SQLite's cache;
    # keys and texts alone, held as Python objects, would be 60 MB and 200 MB
    assert large[1] < 50 * MB


def test_reading_holds_no_more_than_the_batch_at_hand(large: tuple[Path, int]) -> None:
    texts = [
        f"text number {i} of the train split, with some words more" for i in range(0, 6400, 100)
    ]
    tracemalloc.start()
    try:
        cache = logit_cache.LogitCache(large[0])
        rows = cache.find(texts)
        logits = cache.rows(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(cache) == 300_000
    assert logits.shape == (64, 8)
    assert len(set(rows.tolist())) == 64
    assert peak < 0.5 * MB  # the keys are 9.6 MB, a dict of them 40 MB
