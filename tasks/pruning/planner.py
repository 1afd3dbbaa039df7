"""Which units stay so that a budget is met at the least damage: numbers in, a plan out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from tasks.errors import ParamsError
from tasks.pruning.importance import LayerScores
from tasks.pruning.sensitivity import NEURON_BLOCK, Curve, Kind, smallest
from tasks.pruning.width import LayerPlan, keep_best
from tasks.schema import Budget

Counts = tuple[tuple[int, int], ...]
"""Heads and neurons that each layer keeps."""
LIMITS = ("bytes", "flops", "latency_ms")
GAP = 1e-4
"""How far the damage may be above the proven lower bound, as a share of it."""
ROOM = {"bytes": 1.01, "flops": 1.0, "latency_ms": 1.1}
"""The next command asks for the smallest figure times this: it is predicted, or a timing."""


@dataclass(frozen=True)
class Price:
    """A cost that is a fixed part plus so much for every unit kept, by layer."""

    fixed: float
    head: tuple[float, ...]
    neuron: tuple[float, ...]

    def of(self, counts: Counts) -> float:
        """The cost of keeping so many heads and neurons in each layer."""
        units = zip(counts, self.head, self.neuron, strict=True)
        return self.fixed + sum(h * head + n * neuron for (h, n), head, neuron in units)

    def scaled(self, factor: float) -> Price:
        """The same with every part times a factor."""
        return Price(
            self.fixed * factor,
            tuple(h * factor for h in self.head),
            tuple(n * factor for n in self.neuron),
        )


Cost = Mapping[str, Price]
"""By the name of the limit in `Budget`: ``bytes``, ``flops``, ``latency_ms``."""


@dataclass(frozen=True)
class Choice:
    """How many units of one kind one layer may keep, and the damage of each count."""

    layer: int
    kind: Kind
    options: tuple[int, ...]
    damages: tuple[float, ...]

    def price(self, price: Price) -> float:
        """Of one unit."""
        return (price.head if self.kind == "heads" else price.neuron)[self.layer]


def plan_budget(
    curves: Sequence[Curve], scores: Sequence[LayerScores], budget: Budget, cost: Cost
) -> list[LayerPlan]:
    """The units that stay: the least sum of damages under every limit that is not 0.

    Damages are taken to add up and costs to be affine in the counts, which makes this a
    multiple-choice knapsack with up to three weights (Kellerer et al. 2004, chapter 11). It is
    solved by branch and bound to within `GAP` of the proven optimum. Room that is left is then
    filled: a cut that looks free in one layer alone is not free in company.

    Args:
        curves: two for each layer, as from `sensitivity`.
        scores: the highest-scored units stay.
        cost: a price for each limit that is set.

    Raises:
        ParamsError: a limit is below what one head and `NEURON_BLOCK` neurons a layer cost.
    """
    limits = {name: getattr(budget, name) for name in LIMITS if getattr(budget, name) > 0}
    choices = _choices(curves, scores)
    picks = [len(choice.options) - 1 for choice in choices]
    if limits:
        _check_reachable(choices, limits, cost)
        picks = _fill(choices, _solve(choices, limits, cost), limits, cost)
    return [
        LayerPlan(keep_best(score.heads, heads), keep_best(score.neurons, neurons))
        for score, (heads, neurons) in zip(scores, _counts(choices, picks), strict=True)
    ]


def counts_of(plan: Sequence[LayerPlan]) -> Counts:
    """How many heads and neurons a plan keeps in each layer."""
    return tuple((len(layer.heads), len(layer.neurons)) for layer in plan)


def damage_of(curves: Sequence[Curve], counts: Counts) -> float:
    """The sum of the damages of all layers and kinds."""
    kept = {"heads": 0, "neurons": 1}
    return sum(curve.damage(counts[curve.layer][kept[curve.kind]]) for curve in curves)


def exceeded(budget: Budget, costs: Mapping[str, float]) -> list[str]:
    """The limits that are set and that costs are above."""
    limits = {name: getattr(budget, name) for name in LIMITS}
    return [name for name, limit in limits.items() if 0 < limit < costs.get(name, 0.0)]


def options(kind: Kind, units: int) -> tuple[int, ...]:
    """Counts that a layer may keep: any number of heads, blocks of neurons or all of them."""
    step = 1 if kind == "heads" else NEURON_BLOCK
    return tuple(sorted({*range(smallest(kind, units), units, step), units}))


def _choices(curves: Sequence[Curve], scores: Sequence[LayerScores]) -> list[Choice]:
    """Heads and neurons of each layer in turn."""
    found = []
    for curve in sorted(curves, key=lambda c: (c.layer, c.kind)):  # "heads" before "neurons"
        counts = options(curve.kind, len(getattr(scores[curve.layer], curve.kind)))
        damages = tuple(curve.damage(count) for count in counts)
        found.append(Choice(curve.layer, curve.kind, counts, damages))
    expected = [(layer, kind) for layer in range(len(scores)) for kind in ("heads", "neurons")]
    if [(choice.layer, choice.kind) for choice in found] != expected:
        raise ValueError(f"expected two curves for each of {len(scores)} layers")
    return found


def _counts(choices: Sequence[Choice], picks: Sequence[int]) -> Counts:
    kept = [choice.options[pick] for choice, pick in zip(choices, picks, strict=True)]
    return tuple(zip(kept[::2], kept[1::2], strict=True))


def _check_reachable(choices: Sequence[Choice], limits: Mapping[str, float], cost: Cost) -> None:
    least = _counts(choices, [0] * len(choices))
    floors = {name: cost[name].of(least) for name in limits}
    missed = {name: floor for name, floor in floors.items() if floor > limits[name]}
    if not missed:
        return
    found = "; ".join(
        f"prune.budget.{name}: found {limits[name]}, expected at least {_up(name, floor)}"
        for name, floor in missed.items()
    )
    raised = " ".join(
        f"--set prune.budget.{name}={_up(name, floor * ROOM[name])}"
        for name, floor in missed.items()
    )
    raise ParamsError(
        f"{found}, which is what one head and {NEURON_BLOCK} neurons in every layer come to; "
        "fewer layers (prune.drop_layers) or fewer word pieces (distill.vocabulary.min_count) "
        "reach further",
        next_command=f"stillroom compress {raised}",
    )


def _up(name: str, value: float) -> str:
    """A figure as it is written in params, rounded up."""
    if name == "latency_ms":
        return f"{math.ceil(value * 1000) / 1000:g}"
    return str(math.ceil(value))


def _solve(choices: Sequence[Choice], limits: Mapping[str, float], cost: Cost) -> list[int]:
    """Position of the option taken in each choice.

    One binary variable an option, one equation a choice, one inequality a limit. The solver
    allows a row to be over by a millionth, so a solution is checked and, should it be over,
    sought again with that much less room; the smallest counts fit always.
    """
    sizes = [len(choice.options) for choice in choices]
    owner = np.repeat(np.arange(len(choices)), sizes)
    one_each = csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    damages = np.concatenate([choice.damages for choice in choices])
    weights = np.array([
        np.concatenate([np.multiply(c.options, c.price(cost[name])) for c in choices])
        for name in limits
    ])  # fmt: skip
    room = np.array([limit - cost[name].fixed for name, limit in limits.items()])
    scale = np.maximum(np.abs(room), 1e-12)
    for tightened in (0.0, 2e-6, 1e-5, 1e-4, 1e-3):
        found = milp(
            damages / max(damages.max(), 1e-12),
            integrality=np.ones(len(owner)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(weights / scale[:, None], -np.inf, room / scale - tightened),
            ],
            options={"mip_rel_gap": GAP},
        )
        if found.x is None:
            break
        taken = np.split(found.x, np.cumsum(sizes)[:-1])
        picks = [int(part.argmax()) for part in taken]
        if _fits(choices, picks, limits, cost):
            return picks
    return [0] * len(choices)


def _fits(
    choices: Sequence[Choice], picks: Sequence[int], limits: Mapping[str, float], cost: Cost
) -> bool:
    counts = _counts(choices, picks)
    return all(cost[name].of(counts) <= limit for name, limit in limits.items())


def _fill(
    choices: Sequence[Choice], picks: list[int], limits: Mapping[str, float], cost: Cost
) -> list[int]:
    """Take the next larger option wherever it fits, the one first that repairs most for its price.

    Damage never rises with more units, so this can only help; it ends when nothing fits.
    """

    def worth(position: int) -> float:
        choice, pick = choices[position], picks[position]
        repaired = choice.damages[pick] - choice.damages[pick + 1]
        step = choice.options[pick + 1] - choice.options[pick]
        price = max(step * choice.price(cost[name]) / limit for name, limit in limits.items())
        return repaired / max(price, 1e-12)

    open_ = {p for p, choice in enumerate(choices) if picks[p] + 1 < len(choice.options)}
    while open_:
        best = max(sorted(open_), key=worth)
        larger = [pick + (position == best) for position, pick in enumerate(picks)]
        if _fits(choices, larger, limits, cost):
            picks[best] += 1
            if picks[best] + 1 == len(choices[best].options):
                open_.remove(best)
        else:
            open_.remove(best)  # nor will it fit when others have grown
    return picks
