"""Altered copies: what each operation does, and that the seed alone decides."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.problems.augmentation import (
    augment,
    drop_words,
    replace_words,
    splice,
    swap_words,
    unigrams,
)
from tasks.schema import Augment

TEXTS = [
    "where is my new card",
    "my card was declined at the shop",
    "how do I top up",
    "Top   up failed",
    "transfer",
    "the exchange rate is wrong",
]
ALL = Augment(copies=8, drop=0.2, swap=0.2, replace=0.2, splice=0.3)


def only(copies: int = 20, **probabilities: float) -> Augment:
    return Augment(**{"copies": copies, "drop": 0.0, "swap": 0.0, "replace": 0.0, "splice": 0.0,
                      **probabilities})  # fmt: skip


def fold(text: str) -> str:
    return " ".join(text.casefold().split())


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def test_the_copies_are_these_on_every_machine() -> None:
    digest = hashlib.sha256("\n".join(augment(TEXTS, ALL, seed=13)).encode()).hexdigest()
    assert digest == "2e49816aecc70199904b82b41e71ce620df460403494c58cd069f8f6f985cb57"


def test_another_seed_gives_other_copies() -> None:
    assert list(augment(TEXTS, ALL, seed=1)) != list(augment(TEXTS, ALL, seed=2))


def test_more_copies_begin_with_those_of_fewer() -> None:
    texts, config = ["a b c d e f g", "t u v w x y z"], only(copies=3, drop=0.2, swap=0.4)
    few = list(augment(texts, config, seed=3))
    many = list(augment(texts, config.model_copy(update={"copies": 9}), seed=3))
    for words in texts:
        short, long = ([t for t in made if set(t) <= set(words)] for made in (few, many))
        assert long[: len(short)] == short
        assert len(long) > len(short) > 0


def test_no_copies_and_no_alterations_give_nothing() -> None:
    assert list(augment(TEXTS, only(copies=0, drop=0.5), seed=0)) == []
    assert list(augment(TEXTS, only(), seed=0)) == []
    assert list(augment([], ALL, seed=0)) == []


WORDS = st.lists(st.sampled_from("abcdeFf"), min_size=1, max_size=8).map(" ".join)
SHARE = st.floats(0, 1)


@settings(deadline=None, max_examples=60)
@given(st.lists(WORDS, min_size=1, max_size=12), SHARE, SHARE, SHARE, SHARE, st.integers(0, 99))
def test_no_copy_is_empty_or_a_text_that_was_there(
    texts: list[str], drop: float, swap: float, replace: float, other: float, seed: int
) -> None:
    config = Augment(copies=3, drop=drop, swap=swap, replace=replace, splice=other)
    made = list(augment(texts, config, seed=seed))
    assert len(made) <= 3 * len(texts)
    assert all(made)
    assert not {fold(text) for text in texts} & {fold(text) for text in made}
    assert {word for text in made for word in text.split()} <= set(" ".join(texts).split())


def test_a_text_gives_a_copy_once() -> None:
    made = list(augment(["one two"], only(copies=50, drop=0.5), seed=0))
    assert sorted(made) == ["one", "two"]


def test_dropping_keeps_the_order_and_the_expected_share() -> None:
    words = [str(i) for i in range(20_000)]
    kept = drop_words(words, 0.3, stream())
    assert kept == sorted(kept, key=int)
    assert len(kept) / len(words) == pytest.approx(0.7, abs=0.01)  # three standard deviations


def test_when_all_would_go_any_one_stays() -> None:
    kept = Counter(tuple(drop_words(["a", "b", "c"], 1.0, stream(seed))) for seed in range(300))
    assert set(kept) == {("a",), ("b",), ("c",)}
    assert min(kept.values()) > 70


def test_swapping_moves_each_word_by_one_place_at_most() -> None:
    assert swap_words(list("abcde"), 1.0, stream()) == list("badce")
    assert swap_words(["a"], 1.0, stream()) == ["a"]
    words = list(range(10_000))
    swapped = swap_words([str(i) for i in words], 0.3, stream())
    assert sorted(map(int, swapped)) == words
    assert max(abs(int(word) - place) for place, word in enumerate(swapped)) == 1


def test_replacing_draws_words_as_often_as_they_occur() -> None:
    pool, edges = unigrams(["a a a b", "b c  a"])
    assert pool == ["a", "b", "c"]
    assert edges.tolist() == [4, 6, 7]
    made = Counter(replace_words(["x"] * 40_000, 0.5, pool, edges, stream()))
    assert made["x"] / 40_000 == pytest.approx(0.5, abs=0.01)
    for word, count in (("a", 4), ("b", 2), ("c", 1)):
        assert made[word] / (40_000 - made["x"]) == pytest.approx(count / 7, abs=0.01)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [(0.0, "a v w x y z"), (0.5, "a b x y z"), (0.99, "a b c z")],
)
def test_a_splice_by_hand(cut: float, expected: str) -> None:
    assert splice(list("abcd"), list("vwxyz"), cut) == expected.split()


def test_a_splice_has_a_beginning_of_one_and_an_end_of_another() -> None:
    assert splice(["only"], ["x", "y"], 0.9) == ["only", "y"]
    texts = ["a1 a2 a3", "b1 b2 b3 b4", "c1 c2"]
    made = list(augment(texts, only(splice=1.0), seed=0))
    assert len(made) > 6
    for text in made:
        words = text.split()
        own = [word for word in words if word[0] == words[0][0]]
        other = [word for word in words if word[0] == words[-1][0]]
        assert [*own, *other] == words
        assert own[0].endswith("1")
        assert next(source for source in texts if source.endswith(other[-1]))


def test_the_share_of_splices_is_the_one_asked_for() -> None:
    texts = [f"a{i} b{i} c{i} d{i} e{i}" for i in range(2000)]
    made = list(augment(texts, only(copies=1, splice=0.3), seed=0))
    assert len(made) / len(texts) == pytest.approx(0.3, abs=0.03)  # the others are left out
