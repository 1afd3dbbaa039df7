"""Cached teacher logits come back for the right text, in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import IntegrityError
from tasks.training import logit_cache

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)


def fake_logits(texts: Sequence[str]) -> np.ndarray:
    """Numbers that follow from the text alone."""
    return np.array([[len(t), sum(map(ord, t)) % 97, 1.5] for t in texts], dtype=np.float32)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_every_text_finds_its_own_row(tmp_path: Path, texts: list[str], random: object) -> None:
    written = logit_cache.write(tmp_path, texts, 3, fake_logits, chunk=7)
    assert written == len(set(texts))
    asked = list(texts)
    random.shuffle(asked)  # type: ignore[attr-defined]
    cache = logit_cache.LogitCache(tmp_path)
    np.testing.assert_array_equal(cache.rows(cache.find(asked)), fake_logits(asked))


def test_a_text_that_the_teacher_never_saw_is_refused(tmp_path: Path) -> None:
    logit_cache.write(tmp_path, ["a", "b"], 3, fake_logits)
    with pytest.raises(IntegrityError, match="teach"):
        logit_cache.LogitCache(tmp_path).find(["a", "c"])


def test_the_teacher_is_asked_in_chunks(tmp_path: Path) -> None:
    asked: list[int] = []

    def count(texts: Sequence[str]) -> np.ndarray:
        asked.append(len(texts))
        return fake_logits(texts)

    logit_cache.write(tmp_path, [str(i) for i in range(10)], 3, count, chunk=4)
    assert asked == [4, 4, 2]
