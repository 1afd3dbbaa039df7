"""Piece ids of many texts take four bytes each, and are those of the texts one by one."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.modeling import vocabulary
from tasks.problems.classification import encode, pad, read_tokenizer
from tests.unit.test_student import checkpoint  # noqa: F401


@given(
    counts=st.lists(st.integers(0, 12), max_size=20),
    where=st.one_of(st.integers(-3, 25), st.slices(20)),
    chunk=st.integers(1, 7),
)
def test_rows_are_what_a_list_of_them_would_be(
    checkpoint: Path,  # noqa: F811
    counts: list[int],
    where: int | slice,
    chunk: int,
) -> None:
    texts = [" ".join(f"w{i % 20}" for i in range(n)) for n in counts]
    tokenizer = read_tokenizer(checkpoint, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "CHUNK", chunk)
        found = encode(tokenizer, iter(texts))
    expected = [tokenizer.encode(text).ids for text in texts]
    assert [row.tolist() for row in found] == expected
    if isinstance(where, slice):
        assert [row.tolist() for row in found[where]] == expected[where]
    elif -len(texts) <= where < len(texts):
        assert found[where].tolist() == expected[where]
    else:
        with pytest.raises(IndexError):
            found[where]


def test_a_batch_of_them_is_padded(checkpoint: Path) -> None:  # noqa: F811
    ids = encode(read_tokenizer(checkpoint, 16), ["w1", "w2 w3 w4"])
    padded, mask = pad(ids[:], 0)
    assert padded.tolist()[1] == ids[1].tolist()
    assert mask.sum(1).tolist() == [len(row) for row in ids]


def test_no_text_stays_and_no_object_for_each_piece(checkpoint: Path) -> None:  # noqa: F811
    rows, words = 50_000, 10
    tokenizer = read_tokenizer(checkpoint, 64)
    tracemalloc.start()
    ids = encode(tokenizer, (" ".join(f"w{(i + k) % 20}" for k in range(words))
                             for i in range(rows)))  # fmt: skip
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    pieces = sum(map(len, ids))
    assert pieces >= rows * words
    needed = 4 * pieces + 8 * (rows + 1)
    assert held < 1.3 * needed, "an array grows by an eighth"
    assert peak < 2.5 * needed + 60 * 8192 * words, "and a chunk of texts beside it"
    assert ids[0].dtype == np.int32
