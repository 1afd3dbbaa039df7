"""The plan meets the budget, and brute force finds nothing much better."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from time import process_time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import ParamsError
from tasks.pruning.cost import plan_within
from tasks.pruning.importance import LayerScores
from tasks.pruning.planner import (
    LIMITS,
    Counts,
    Price,
    counts_of,
    damage_of,
    exceeded,
    options,
    plan_budget,
)
from tasks.pruning.sensitivity import Curve, curve
from tasks.pruning.width import LayerPlan
from tasks.schema import Budget


def budget(*, size: int = 0, flops: int = 0, latency_ms: float = 0.0) -> Budget:
    return Budget.model_validate({"bytes": size, "flops": flops, "latency_ms": latency_ms})


def scores(layers: int, heads: int, neurons: int) -> list[LayerScores]:
    """The last unit is worth most."""
    return [LayerScores(torch.arange(heads) + 1.0, torch.arange(neurons) + 1.0)] * layers


def linear_curves(slopes: Sequence[tuple[float, float]], heads: int, neurons: int) -> list[Curve]:
    """Damage per head and per neuron that goes, by layer."""
    return [
        curve(layer, kind, [(1, slope * (units - 1)), (units, 0.0)])
        for layer, pair in enumerate(slopes)
        for kind, slope, units in zip(("heads", "neurons"), pair, (heads, neurons), strict=True)
    ]


def test_the_counts_to_choose_from() -> None:
    assert options("heads", 4) == (1, 2, 3, 4)
    assert options("neurons", 128) == (32, 64, 96, 128)
    assert options("neurons", 100) == (32, 64, 96, 100)
    assert options("neurons", 24) == (24,)
    assert options("heads", 1) == (1,)


def test_a_price_by_hand() -> None:
    price = Price(100.0, (10.0, 20.0), (1.0, 2.0))
    assert price.of(((3, 32), (1, 64))) == 100 + 30 + 32 + 20 + 128 == 310
    assert price.scaled(2).of(((3, 32), (1, 64))) == 2 * 310


def test_no_limit_keeps_everything() -> None:
    curves = linear_curves([(1.0, 1.0)] * 2, 4, 100)
    plan = plan_budget(curves, scores(2, 4, 100), budget(), {})
    assert plan == [LayerPlan(tuple(range(4)), tuple(range(100)))] * 2


def test_the_cheap_layer_is_cut_and_its_best_units_stay() -> None:
    # layer 1 is ten times as sensitive; 128 neurons at one byte each have to go
    curves = linear_curves([(0.1, 0.01), (1.0, 0.1)], 2, 128)
    price = Price(0.0, (0.0, 0.0), (1.0, 1.0))
    plan = plan_budget(curves, scores(2, 2, 128), budget(size=160), {"bytes": price})
    assert counts_of(plan) == ((2, 32), (2, 128))
    assert plan[0].neurons == tuple(range(96, 128))


def test_a_curve_that_is_not_convex() -> None:
    """One neuron block less is dear, all but one gone hardly dearer: greedy steps miss it."""
    steep = curve(0, "neurons", [(32, 1.1), (64, 1.0), (96, 1.0), (128, 0.0)])
    slow = curve(1, "neurons", [(32, 2.7), (64, 1.8), (96, 0.9), (128, 0.0)])
    heads = [curve(layer, "heads", [(1, 0.0)]) for layer in range(2)]
    price = Price(0.0, (0.0, 0.0), (1.0, 1.0))
    plan = plan_budget(
        [heads[0], steep, heads[1], slow], scores(2, 1, 128), budget(size=160), {"bytes": price}
    )
    assert counts_of(plan) == ((1, 32), (1, 128))  # 1.1; the greedy path takes 0.9 first: 1.9


def test_room_that_is_left_is_filled_where_nothing_is_gained_by_measure() -> None:
    flat = [
        curve(layer, kind, [(1, 0.0), (units, 0.0)])
        for layer in range(2)
        for kind, units in (("heads", 4), ("neurons", 64))
    ]
    price = Price(10.0, (8.0, 8.0), (1.0, 1.0))
    plan = plan_budget(flat, scores(2, 4, 64), budget(size=170), {"bytes": price})
    assert 170 - 8 < price.of(counts_of(plan)) <= 170


HEADS, NEURONS = 3, 96


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Curve], dict[str, Price], Budget]:
    """Falling curves of any shape, whole-numbered prices, one to three limits within reach."""
    layers = draw(st.integers(1, 3))
    curves = []
    for layer in range(layers):
        for kind, units in (("heads", HEADS), ("neurons", NEURONS)):
            falls = draw(st.lists(st.floats(0, 5), min_size=len(options(kind, units)) - 1,
                                  max_size=len(options(kind, units)) - 1))  # fmt: skip
            rises = itertools.accumulate([0.0, *falls])
            points = zip(reversed(options(kind, units)), rises, strict=True)
            curves.append(curve(layer, kind, list(points)))
    unit = st.lists(st.integers(0, 50), min_size=layers, max_size=layers)
    prices, limits = {}, {"bytes": 0, "flops": 0, "latency_ms": 0.0}
    for name in draw(st.sets(st.sampled_from(LIMITS), min_size=1)):
        fixed = float(draw(st.integers(1, 1000)))
        price = Price(fixed, tuple(map(float, draw(unit))), tuple(map(float, draw(unit))))
        prices[name] = price
        least, whole = (price.of(((h, n),) * layers) for h, n in ((1, 32), (HEADS, NEURONS)))
        limit = draw(st.integers(int(least), int(whole)))
        limits[name] = float(limit) if name == "latency_ms" else limit
    return curves, prices, Budget.model_validate(limits)


def brute_force(curves: list[Curve], prices: dict[str, Price], limits: Budget) -> float:
    layers = len(curves) // 2
    layer = list(itertools.product(options("heads", HEADS), options("neurons", NEURONS)))
    within = (
        counts
        for counts in itertools.product(layer, repeat=layers)
        if not exceeded(limits, {name: price.of(counts) for name, price in prices.items()})
    )
    return min(damage_of(curves, counts) for counts in within)


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_brute_force_finds_nothing_better(
    problem: tuple[list[Curve], dict[str, Price], Budget],
) -> None:
    curves, prices, limits = problem
    plan = plan_budget(curves, scores(len(curves) // 2, HEADS, NEURONS), limits, prices)
    counts = counts_of(plan)
    assert not exceeded(limits, {name: price.of(counts) for name, price in prices.items()})
    best = brute_force(curves, prices, limits)
    assert best - 1e-9 <= damage_of(curves, counts) <= best * 1.01 + 1e-5


@settings(max_examples=60, deadline=None)
@given(problem=problems(), factor=st.floats(1e-6, 1e6), tight=st.booleans())
def test_never_over_whatever_the_scale(
    problem: tuple[list[Curve], dict[str, Price], Budget], factor: float, tight: bool
) -> None:
    curves, prices, _ = problem
    layers = len(curves) // 2
    prices = {"latency_ms": next(iter(prices.values())).scaled(factor)}
    counts: Counts = ((1, 32),) * layers if tight else ((2, 64),) * layers
    limit = prices["latency_ms"].of(counts)  # met exactly, to the last bit
    plan = plan_budget(curves, scores(layers, HEADS, NEURONS), budget(latency_ms=limit), prices)
    assert prices["latency_ms"].of(counts_of(plan)) <= limit


def large() -> tuple[list[Curve], list[LayerScores], dict[str, Price]]:
    """24 layers of a large model, with curves as they are measured."""
    random.seed(0)
    curves = []
    for layer in range(24):
        for kind, units in (("heads", 16), ("neurons", 4096)):
            rises = itertools.accumulate(random.random() ** 4 for _ in range(5))
            kept = [units * share for share in (0.75, 0.5, 0.25, 0.125, 0.0625)]
            points = [(int(k), rise) for k, rise in zip(kept, rises, strict=True)]
            curves.append(curve(layer, kind, [*points, (units, 0.0)]))
    size = Price(3.1e7, (65_000.0,) * 24, (2_057.0,) * 24)
    flops = Price(1e8, (7e6,) * 24, (9.8e4,) * 24)
    latency = Price(2.0, (0.1,) * 24, (0.0004,) * 24)
    return curves, scores(24, 16, 4096), {"bytes": size, "flops": flops, "latency_ms": latency}


def test_a_large_model_is_planned_in_seconds_under_three_limits() -> None:
    curves, units, prices = large()
    limits = budget(size=120_000_000, flops=6_000_000_000, latency_ms=40.0)
    began = process_time()
    counts = counts_of(plan_budget(curves, units, limits, prices))
    assert process_time() - began < 20
    costs = {name: price.of(counts) for name, price in prices.items()}
    assert not exceeded(limits, costs)
    shares = [costs["bytes"] / 120e6, costs["flops"] / 6e9, costs["latency_ms"] / 40]
    assert max(shares) > 0.995  # nothing else can be kept
    even = tuple((6, 1472) for _ in counts)
    assert not exceeded(limits, {name: price.of(even) for name, price in prices.items()})
    assert damage_of(curves, counts) < 0.8 * damage_of(curves, even)


def test_a_budget_out_of_reach_names_the_key_and_a_command_that_works() -> None:
    curves, units, prices = large()
    least: Counts = ((1, 32),) * 24
    with pytest.raises(ParamsError) as caught:
        plan_budget(curves, units, budget(size=1_000_000, latency_ms=0.5), prices)
    said = caught.value
    floor = round(prices["bytes"].of(least))
    assert f"prune.budget.bytes: found 1000000, expected at least {floor}" in said.message
    assert "prune.budget.latency_ms: found 0.5, expected at least 4.708" in said.message
    assert "distill.vocabulary.min_count" in said.message
    assert "flops" not in said.message
    assert said.exit_code == 2
    command = (said.next_command or "").split()
    assert command[:2] == ["stillroom", "compress"]
    raised = dict(word.removeprefix("prune.budget.").split("=") for word in command[3::2])
    again = budget(size=int(raised["bytes"]), latency_ms=float(raised["latency_ms"]))
    costs = counts_of(plan_budget(curves, units, again, prices))
    assert not exceeded(again, {name: price.of(costs) for name, price in prices.items()})


def test_the_least_is_within_reach_to_the_last_byte() -> None:
    curves, units, prices = large()
    least: Counts = ((1, 32),) * 24
    exact = budget(size=round(prices["bytes"].of(least)))
    assert counts_of(plan_budget(curves, units, exact, prices)) == least


def test_curves_of_every_layer_are_expected() -> None:
    curves = linear_curves([(1.0, 1.0)] * 2, 4, 64)
    with pytest.raises(ValueError, match="two curves for each of 2 layers"):
        plan_budget(curves[:3], scores(2, 4, 64), budget(size=10), {"bytes": Price(0.0, (), ())})


def bytes_and_time(factor: float) -> tuple[dict[str, Price], list[Counts], object]:
    """Prices, and a measurement that finds everything dearer by a factor."""
    prices = {
        "bytes": Price(100.0, (10.0,) * 2, (1.0,) * 2),
        "latency_ms": Price(0.1, (0.1,) * 2, (0.001,) * 2),
    }
    seen: list[Counts] = []

    def real(plan: Sequence[LayerPlan]) -> dict[str, float]:
        seen.append(counts_of(plan))
        return {name: factor * price.of(seen[-1]) for name, price in prices.items()}

    return prices, seen, real


def test_a_plan_counts_when_it_was_measured_within_the_budget() -> None:
    curves, units = linear_curves([(0.3, 0.01), (0.2, 0.02)], 4, 256), scores(2, 4, 256)
    limits, said = budget(size=500, latency_ms=1.0), list[str]()
    prices, seen, real = bytes_and_time(1.12)
    plan, found = plan_within(curves, units, limits, prices, real, say=said.append)
    assert len(seen) == len(said) == 2  # the first was over, the second knows by how much
    assert not exceeded(limits, found)
    assert found["bytes"] == pytest.approx(1.12 * prices["bytes"].of(counts_of(plan)))
    assert "over bytes" in said[0]
    assert "over" not in said[1]


def test_measured_out_of_reach() -> None:
    curves, units = linear_curves([(0.3, 0.01), (0.2, 0.02)], 4, 256), scores(2, 4, 256)
    prices, _, real = bytes_and_time(3.0)
    with pytest.raises(ParamsError, match=r"prune\.budget\.bytes: found 500, expected at least"):
        plan_within(curves, units, budget(size=500), prices, real)
    growing = itertools.count(1)

    def never(plan: Sequence[LayerPlan]) -> dict[str, float]:
        return {"latency_ms": 1.001 + 0.001 * next(growing)}

    with pytest.raises(ParamsError, match=r"latency_ms: found 1\.0, .* last of 3 cand") as caught:
        plan_within(curves, units, budget(latency_ms=1.0), prices, never, attempts=3)
    assert caught.value.next_command == "stillroom compress --set prune.budget.latency_ms=1.104"
