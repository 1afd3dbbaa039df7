"""Intervals, power and class drops against other derivations and against simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import bootstrap, norm

from tasks.evaluation import statistics as s


def answers(lost: int, won: int, both: int, none: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Teacher's and candidate's correctness with these cells."""
    teacher = np.array([1] * lost + [0] * won + [1] * both + [0] * none, dtype=bool)
    candidate = np.array([0] * lost + [1] * won + [1] * both + [0] * none, dtype=bool)
    return teacher, candidate


def test_paired_bootstrap_agrees_with_scipy_and_the_normal_interval():
    teacher, candidate = answers(lost=60, won=30, both=2700, none=290)
    found = s.paired_bootstrap(teacher, candidate, resamples=20_000, seed=0)
    loss = 100.0 * (teacher.astype(float) - candidate)
    assert found.point == pytest.approx(100 * 30 / 3080)
    other = bootstrap(
        (loss,), np.mean, n_resamples=3000, method="percentile", rng=1, batch=200
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.05)
    half = 1.96 * loss.std() / math.sqrt(3080)
    assert (found.low, found.high) == pytest.approx(
        (found.point - half, found.point + half), abs=0.05
    )


def test_paired_bootstrap_is_of_the_seed_and_directed():
    teacher, candidate = answers(lost=20, won=5, both=175)
    once = s.paired_bootstrap(teacher, candidate, resamples=1000, seed=7)
    assert once == s.paired_bootstrap(teacher, candidate, resamples=1000, seed=7)
    back = s.paired_bootstrap(candidate, teacher, resamples=1000, seed=7)
    assert once.point == 7.5 == -back.point
    assert once.low < once.point < once.high


@pytest.mark.parametrize("n", [1, 20, 3080])
def test_what_was_never_seen_is_allowed_for(n: int):
    assert s.unseen(n) == pytest.approx(stats.binomtest(0, n).proportion_ci().high)


def test_no_disagreement_is_certain_only_as_far_as_the_rows_go():
    teacher, candidate = answers(lost=0, won=0, both=50, none=4)
    found = s.paired_bootstrap(teacher, candidate, resamples=500, seed=0)
    bound = 100 * stats.binomtest(0, 54).proportion_ci().high
    assert (found.low, found.point, found.high) == pytest.approx((-bound, 0, bound))
    kept = s.retained_interval(teacher, candidate, resamples=500, seed=0)
    assert (kept.low, kept.point) == pytest.approx((1 - bound / 100 * 54 / 50, 1))


def test_where_nothing_was_lost_the_upper_end_is_not_what_was_drawn():
    teacher, candidate = answers(lost=0, won=2, both=16, none=2)
    found = s.paired_bootstrap(teacher, candidate, resamples=500, seed=0)
    assert found.point == -10.0
    assert found.high == pytest.approx(-10 + 100 * s.unseen(20))
    assert found.low == pytest.approx(np.clip(found.low, -30, -10)), "as drawn"


def test_retained_interval_against_resampled_rows():
    teacher, candidate = answers(lost=60, won=30, both=2700, none=290)
    found = s.retained_interval(teacher, candidate, resamples=20_000, seed=0)
    assert found.point == pytest.approx(2730 / 2760)
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 3080, size=(3000, 3080))
    low, high = np.percentile(candidate[rows].sum(1) / teacher[rows].sum(1), [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-4)


def test_retained_of_a_teacher_that_is_never_right_is_nan():
    teacher, candidate = answers(lost=0, won=2, both=0, none=3)
    assert math.isnan(s.retained_interval(teacher, candidate, resamples=100, seed=0).point)


def test_flip_rate_counts_flips_between_wrong_answers_too():
    teacher, candidate = np.array([1, 2, 3, 4]), np.array([1, 0, 3, 5])
    assert s.flip_rate(teacher, candidate) == 0.5


def test_discordance_by_hand():
    assert s.discordance(*answers(lost=3, won=1, both=10, none=2)) == 4 / 16


@pytest.mark.parametrize("function", [s.flip_rate, s.discordance])
def test_unpaired_rows_are_refused(function):
    for a, b in ((np.ones(3), np.ones(2)), (np.ones(0), np.ones(0))):
        with pytest.raises(ValueError, match="expected two equal lengths"):
            function(a, b)


@given(st.integers(30, 10**6), st.floats(0, 1), st.floats(0.5, 0.95))
def test_detectable_drop_solves_connors_equation(n, psi, power):
    delta = s.detectable_drop(n, psi, power=power) / 100
    psi = max(psi, delta)
    z_alpha, z_power = norm.ppf(0.975), norm.ppf(power)
    needed = (z_alpha * math.sqrt(psi) + z_power * math.sqrt(psi - delta**2)) ** 2 / delta**2
    assert needed == pytest.approx(n, rel=1e-6)


def test_detectable_drop_has_the_power_it_claims():
    n, psi = 3080, 0.05
    delta = s.detectable_drop(n, psi) / 100
    assert 0.9 < 100 * delta < 1.4
    rng = np.random.default_rng(0)
    lost, won, _ = rng.multinomial(
        n, [(psi + delta) / 2, (psi - delta) / 2, 1 - psi], size=20_000
    ).T
    rejected = np.abs(lost - won) / np.sqrt(lost + won) > norm.ppf(0.975)
    assert rejected.mean() == pytest.approx(0.8, abs=0.02)


def test_detectable_drop_shrinks_with_rows_and_grows_with_discordance():
    assert s.detectable_drop(3080, 0.05) < s.detectable_drop(300, 0.05)
    assert s.detectable_drop(3080, 0.05) < s.detectable_drop(3080, 0.10)
    assert s.detectable_drop(3080, 0.0) > 0
    assert s.detectable_drop(1, 1.0) <= 100
    for n, psi in ((0, 0.1), (10, -0.1), (10, 1.1)):
        with pytest.raises(ValueError, match="expected"):
            s.detectable_drop(n, psi)


def test_shrinkage_by_hand():
    # class 0: 4 rows, 2 lost (50 points); class 1: 6 rows, none lost; overall 20 points
    teacher = np.ones(10, bool)
    candidate = np.array([0, 0, 1, 1] + [1] * 6, dtype=bool)
    labels = np.array([0] * 4 + [1] * 6)
    found = s.shrunken_class_drops(teacher, candidate, labels, min_rows=1, prior_rows=4)
    first, second = found.classes
    assert found.overall == pytest.approx(20)
    assert (first.point, first.shrunken, first.n) == (50, pytest.approx(0.5 * 50 + 0.5 * 20), 4)
    assert (second.point, second.shrunken) == (0, pytest.approx(0.4 * 20))
    z = norm.ppf(1 - 0.05 / 2)
    variance = 0.5 * 0.25 + 0.5 * 0.16
    assert first.lower == pytest.approx(35 - 100 * z * 0.5 * math.sqrt(variance / 4))
    assert found.worst == max(found.classes, key=lambda drop: drop.lower)


def test_min_rows_leaves_small_classes_out():
    teacher, candidate = np.ones(12, bool), np.array([0] * 2 + [1] * 10, dtype=bool)
    labels = np.array([0] * 2 + [1] * 10)
    found = s.shrunken_class_drops(teacher, candidate, labels, min_rows=5, prior_rows=20)
    assert [drop.label for drop in found.classes] == [1]
    none = s.shrunken_class_drops(teacher, candidate, labels, min_rows=50, prior_rows=20)
    assert none.worst is None
    assert none.worst_drop == none.overall == pytest.approx(100 * 2 / 12)


@pytest.mark.parametrize("prior_rows", [0.0, 10.0, 20.0, 40.0])
def test_a_class_that_collapses_is_seen(prior_rows):
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(77), 40)
    teacher = rng.random(3080) < 0.93
    teacher[labels == 5] = np.arange(40) < 38
    candidate = teacher ^ (rng.random(3080) < 0.03)
    candidate[labels == 5] = False
    found = s.shrunken_class_drops(teacher, candidate, labels, min_rows=20, prior_rows=prior_rows)
    assert found.worst is not None
    assert found.worst.label == 5
    assert found.worst.point == 95
    assert found.worst_drop > 10


@pytest.mark.parametrize("prior_rows", [10.0, 20.0, 40.0])
def test_chance_in_many_classes_rarely_exceeds_the_limit(prior_rows):
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(77), 40)
    false_alarms = 0
    for _ in range(100):
        draw = rng.random(3080)  # 5 % lost, 3 % won: a drop of 2 points, the largest allowed
        teacher, candidate = draw >= 0.03, (draw < 0.03) | (draw >= 0.08)
        found = s.shrunken_class_drops(
            teacher, candidate, labels, min_rows=20, prior_rows=prior_rows
        )
        false_alarms += found.worst_drop > 10
    assert false_alarms < 5
