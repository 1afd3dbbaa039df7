"""A candidate is refused when its blocks say so, not when one neighbour was noisy."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import GateRefused, IntegrityError
from tasks.evaluation.latency import PairedRatio
from tasks.release.pace import (
    BLOCK,
    FEWEST,
    MOST,
    Pace,
    Timing,
    block_ratio,
    blocks_for,
    decide,
    judge,
    limit_of,
    recorded_limit,
    texts,
    words_of,
)

RATIO = PairedRatio(median=1.2, q1=1.1, q3=1.3)
PACE = Pace(
    candidate=Timing(0.6, 0.9),
    champion=Timing(0.5, 0.8),
    ratio=RATIO,
    calls=640,
    profile="cpu-avx2",
    machine_profile="cpu-avx512-vnni",
)
JUDGED = judge(PACE, against=3, limit=1.5)
OFF = judge(PACE, against=3, limit=0.0)
ALONE = judge(
    Pace(Timing(0.6, 0.9), None, None, 640, "cpu-avx2", "cpu-avx2"), against=None, limit=1.5
)


@pytest.mark.parametrize(
    ("q1", "median", "q3", "limit", "outcome"),
    [
        (0.9, 1.0, 1.1, 1.5, "within"),
        (1.4, 1.5, 1.6, 1.5, "within"),  # at the limit
        (1.4, 1.6, 2.0, 1.5, "unclear"),  # the median is over, a quarter of the blocks is not
        (1.5, 1.6, 1.7, 1.5, "unclear"),
        (1.51, 1.6, 1.7, 1.5, "beyond"),
        (0.9, 1.0, 9.0, 1.5, "within"),  # a quarter of the blocks met a neighbour
        (0.7, 0.8, 0.9, 0.5, "beyond"),  # a limit under 1 asks for a quicker model
        (2.0, 3.0, 4.0, None, "no limit"),
        (math.nan, math.nan, math.nan, 1.5, "beyond"),
    ],
)
def test_the_whole_interquartile_range_has_to_be_beyond(q1, median, q3, limit, outcome):
    assert decide(PairedRatio(median, q1, q3), limit) == outcome


def test_without_a_champion_nothing_is_refused():
    assert decide(None, 1.5) == decide(None, None) == "not compared"
    ALONE.require("banking77", 1)


def test_block_ratios_by_hand():
    champion = np.array([[1.0, 1.0, 9.0], [2.0, 2.0, 2.0], [1.0, 2.0, 3.0]])  # p50: 1, 2, 2
    candidate = np.array([[2.0, 2.0, 2.0], [3.0, 3.0, 50.0], [2.0, 2.0, 2.0]])  # p50: 2, 3, 2
    assert block_ratio(candidate, champion) == PairedRatio(median=1.5, q1=1.25, q3=1.75)


TIMES = st.integers(5, 40).flatmap(
    lambda blocks: st.lists(
        st.floats(0.01, 100.0), min_size=2 * blocks, max_size=2 * blocks
    ).map(lambda flat: np.array(flat).reshape(2, blocks, 1))
)  # fmt: skip


@given(TIMES, st.floats(0.01, 100.0))
def test_refused_exactly_when_three_quarters_of_the_blocks_are_slower(times, limit):
    candidate, champion = times
    refused = decide(block_ratio(candidate, champion), limit) == "beyond"
    over = np.sort((candidate / champion).ravel())
    lower = over[int(0.25 * (len(over) - 1))]  # the quartile lies between this one and the next
    upper = over[math.ceil(0.25 * (len(over) - 1))]
    if lower > limit + 1e-6:
        assert refused
    if upper <= limit:
        assert not refused


@given(TIMES, st.floats(1.0, 100.0), st.floats(1.01, 10.0))
def test_a_slower_machine_changes_nothing_and_a_slower_model_never_helps(times, load, slower):
    candidate, champion = times
    found = block_ratio(candidate, champion)
    busy = block_ratio(candidate * load, champion * load)
    assert (busy.q1, busy.median, busy.q3) == pytest.approx((found.q1, found.median, found.q3))
    order = ("within", "unclear", "beyond")
    heavier = block_ratio(candidate * slower, champion)
    assert order.index(decide(heavier, 1.5)) >= order.index(decide(found, 1.5))


def test_a_burst_in_under_a_quarter_of_the_blocks_refuses_nobody():
    champion = np.ones((40, BLOCK))
    candidate = np.ones((40, BLOCK))
    candidate[:29] *= 50.0  # 72.5 %
    assert decide(block_ratio(candidate, champion), 1.5) == "unclear"
    candidate[:31] *= 50.0
    assert decide(block_ratio(candidate, champion), 1.5) == "beyond"


def test_a_refusal_says_what_was_found_expected_and_what_to_type():
    with pytest.raises(GateRefused) as caught:
        judge(PACE, against=3, limit=1.05).require("banking77", 4)
    assert caught.value.exit_code == 3
    for words in ("banking77 version 4: found 1.20 times", "version 3", "1.10 to 1.30",
                  "expected at most 1.05", "promotion.max_slowdown"):  # fmt: skip
        assert words in caught.value.message
    command = "stillroom promote --model banking77 --version 4 --max-slowdown 1.2"
    assert str(caught.value.next_command).startswith(command)
    with pytest.raises(GateRefused) as caught:
        judge(PACE, against=3, limit=1.05).require("banking77", 4, yes=True)
    assert "--yes" in str(caught.value.next_command)
    JUDGED.require("banking77", 4)
    OFF.require("banking77", 4)


def test_what_is_said_and_written():
    assert "1.20 times version 3's (1.10 to 1.30 in half of the blocks; at most 1.5)" in (
        JUDGED.sentence()
    )
    assert "no limit" in OFF.sentence()
    assert "no champion" in ALONE.sentence()
    unsound = judge(ALONE.pace, against=3, limit=1.5)
    assert "version 3 not sound" in unsound.sentence()
    assert "not clearly beyond" in judge(PACE, against=3, limit=1.15).sentence()
    facts = json.loads(json.dumps(JUDGED.as_dict(), allow_nan=False))
    assert (facts["outcome"], facts["against"], facts["limit"]) == ("within", 3, 1.5)
    assert facts["ratio"] == {"median": 1.2, "q1": 1.1, "q3": 1.3}
    assert (OFF.as_dict()["outcome"], OFF.as_dict()["limit"]) == ("no limit", None)


def test_the_limit_as_it_is_kept_with_a_version():
    assert recorded_limit(limit_of({"promotion": {"max_slowdown": 1.5}})) == 1.5
    assert recorded_limit(limit_of({"promotion": {"max_slowdown": 0.0}})) is None
    assert limit_of({}) is limit_of({"promotion": None}) is recorded_limit(None) is None
    for text in ("much", "nan", "-1", "inf"):
        with pytest.raises(IntegrityError, match="max_slowdown: found"):
            recorded_limit(text)


@given(st.floats(0, 10))
def test_there_are_as_many_blocks_as_time_allows(block_s):
    blocks = blocks_for(block_s, 1.0)
    assert FEWEST <= blocks <= MOST
    assert blocks in (FEWEST, MOST) or blocks * block_s <= 1.0


@given(st.integers(-2, 512))
def test_texts_have_every_length_and_are_always_the_same(longest):
    found = texts(["a", "b", "c"], longest)
    lengths = [len(text.split()) for text in found]
    assert len(found) == BLOCK
    assert lengths == sorted(lengths)
    assert lengths[-1] == max(1, longest)
    assert lengths[0] == min(4, max(1, longest))
    assert found == texts(["a", "b", "c"], longest)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ({"[PAD]", "card", "##ing", "?", "7", "ж"}, {"card", "ж"}),
        ({"<s>", "Ġcard", "ing", "Ġ", "Ġ?"}, {"card"}),
        ({"▁card", "s", "▁"}, {"card"}),
        ({"[PAD]"}, set()),
    ],
)
def test_words_of_a_vocabulary_are_whole_words(pieces, words):
    assert words_of(pieces) == words
