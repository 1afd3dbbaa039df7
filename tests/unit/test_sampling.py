"""Which rows stand for all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from tasks.problems.classification import Split
from tasks.problems.sampling import by_chance, evenly, spread
from tasks.pruning.calibration import Calibration
from tests.tiny_models import CLASSES, tiny

TOTALS, COUNTS = st.integers(0, 300), st.integers(0, 400)


@given(TOTALS, COUNTS)
def test_evenly_leaves_no_gap_wider_than_another_by_more_than_one(total: int, count: int) -> None:
    found = evenly(total, count)
    assert len(found) == min(total, count)
    if len(found):
        gaps = np.diff([*found, total])  # the last one reaches to the end
        assert found[0] == 0
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1


@given(TOTALS, COUNTS, st.integers(0, 5))
def test_by_chance_draws_each_at_most_once_and_the_same_again(
    total: int, count: int, seed: int
) -> None:
    found = by_chance(total, count, seed)
    assert sorted(set(found)) == list(found)
    assert len(found) == min(total, count)
    assert all(0 <= position < total for position in found)
    assert list(found) == list(by_chance(total, count, seed))


def test_spread_keeps_texts_in_order() -> None:
    assert spread(["a", "b", "c", "d", "e"], 2) == ["a", "c"]
    assert spread(["a", "b"], 5) == ["a", "b"]


def test_calibration_of_a_file_that_is_sorted_by_label_has_every_class() -> None:
    rows = 400
    labels = np.sort(np.arange(rows) % CLASSES)
    split = Split([f"text {label}" for label in labels], labels)
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "text": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    calibration = Calibration(tiny("bert"), tokenizer, split, 100, seed=3)
    seen = [label for _, _, found in calibration.batches() for label in found.tolist()]
    again = [label for _, _, found in calibration.batches() for label in found.tolist()]
    assert len(seen) == 100
    assert set(seen) == set(range(CLASSES))
    assert seen == again
