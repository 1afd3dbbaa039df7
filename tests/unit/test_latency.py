"""Timing is interleaved and fair, percentiles are percentiles, memory is the child's own."""

import gc
import sys
import time

import numpy as np
import pytest

from tasks.errors import UnavailableError
from tasks.evaluation.latency import Latency, cold_start, measure


def recorder(log: list[tuple[str, tuple[str, ...]]], name: str, pause: float = 0.0):
    def answer(texts: list[str]) -> list[str]:
        log.append((name, tuple(texts)))
        assert not gc.isenabled() or pause < 0
        time.sleep(max(pause, 0))
        return ["label"] * len(texts)

    return answer


def test_every_call_is_made_by_each_in_turn_and_the_order_rotates():
    log: list[tuple[str, tuple[str, ...]]] = []
    names = ["a", "b", "c"]
    found = measure(
        {name: recorder(log, name) for name in names},
        ["t0", "t1", "t2", "t3"],
        rounds=2,
        batches=[1],
        warmup=0,
        block=1,
    )
    turns = [log[i : i + 3] for i in range(0, len(log), 3)]
    assert len(turns) == 2 * 4
    for index, turn in enumerate(turns):
        assert {name for name, _ in turn} == set(names)
        assert {texts for _, texts in turn} == {(f"t{index % 4}",)}
    assert {turn[0][0] for turn in turns} == set(names)
    assert found.timings["a"][1].shape == (2, 4)


def test_a_block_of_calls_is_one_models_turn():
    log: list[tuple[str, tuple[str, ...]]] = []
    measure(
        {name: recorder(log, name) for name in "ab"},
        ["t0", "t1", "t2"],
        rounds=1,
        batches=[1],
        warmup=0,
        block=2,
    )
    assert "".join(name for name, _ in log) == "aabb" + "ba"
    assert [text for name, (text,) in log if name == "b"] == ["t0", "t1", "t2"]


def test_batches_hold_what_they_say_and_warm_up_is_not_timed():
    log: list[tuple[str, tuple[str, ...]]] = []
    found = measure(
        {"a": recorder(log, "a", pause=-1)}, ["x", "y", "z"], rounds=1, batches=[2, 8], warmup=3
    )
    assert [len(texts) for _, texts in log] == [2] * 3 + [2] + [8] * 3 + [8]
    assert found.timings["a"][2].shape == found.timings["a"][8].shape == (1, 1)


def test_collection_is_off_inside_and_as_before_outside():
    assert gc.isenabled()
    measure({"a": recorder([], "a")}, ["x"], rounds=1, batches=[1], warmup=0)
    assert gc.isenabled()

    def fail(_texts: list[str]) -> list[str]:
        raise RuntimeError("answer")

    with pytest.raises(RuntimeError, match="answer"):
        measure({"a": fail}, ["x"], rounds=1, batches=[1], warmup=0)
    assert gc.isenabled()


def test_times_are_milliseconds():
    log: list[tuple[str, tuple[str, ...]]] = []
    rows = measure(
        {"slow": recorder(log, "slow", 0.02), "fast": recorder(log, "fast", 0.002)},
        ["x", "y"],
        rounds=3,
        batches=[1, 2],
        warmup=0,
    ).rows
    assert 20 <= rows["slow"][1].p50 < 200
    assert 2 <= rows["fast"][1].p50 < rows["slow"][1].p50
    assert 10 < rows["slow"][2].throughput_per_s <= 100


def test_percentiles_and_throughput_over_all_single_timings():
    times = np.arange(1.0, 101.0).reshape(4, 25)
    row = Latency({"a": {8: times}}).rows["a"][8]
    assert (row.p50, row.p95, row.p99) == pytest.approx((50.5, 95.05, 99.01))
    assert row.throughput_per_s == pytest.approx(8 * 100 / 5.050)


def test_paired_ratio_pairs_texts():
    a = np.array([[10.0, 200.0, 30.0], [10.0, 200.0, 30.0]])
    b = np.array([[1.0, 10.0, 2.0], [1.0, 10.0, 2.0]])
    ratio = Latency({"a": {1: a}, "b": {1: b}}).paired_ratio("a", "b")
    # 10, 20, 15, twice; the quotient of medians would be 30 / 2, of means 240 / 13
    assert (ratio.q1, ratio.median, ratio.q3) == pytest.approx((11.25, 15.0, 18.75))


def test_nothing_to_measure_is_refused():
    for answerers, texts, rounds in (({}, ["x"], 1), ({"a": len}, [], 1), ({"a": len}, ["x"], 0)):
        with pytest.raises(ValueError, match="expected at least one"):
            measure(answerers, texts, rounds=rounds, batches=[1], warmup=0)


def test_cold_start_has_the_childs_memory_and_not_this_process_s():
    ballast = np.ones(40_000_000)  # 320 MB resident here
    small = cold_start([sys.executable, "-S", "-c", "pass"], 1)
    assert ballast.sum() > 0
    assert 2_000_000 < small.peak_memory_bytes < 60_000_000
    large = cold_start([sys.executable, "-S", "-c", "b = b'x' * 100_000_000"], 1)
    assert large.peak_memory_bytes - small.peak_memory_bytes == pytest.approx(1e8, rel=0.1)


def test_cold_start_takes_from_spawn_to_exit_and_hands_on_the_environment():
    code = "import os, time; time.sleep(float(os.environ['NAP']))"
    found = cold_start([sys.executable, "-S", "-c", code], 2, {"NAP": "0.3"})
    assert 300 < found.ms < 6000


def test_a_cold_start_that_fails_says_why():
    with pytest.raises(UnavailableError, match=r"exit code 1 .*no such model"):
        cold_start([sys.executable, "-c", "raise SystemExit('no such model')"], 1)
    with pytest.raises(UnavailableError, match="expected 0"):
        cold_start(["/no/such/command"], 1)
