"""What a cut model will cost once it is served: bytes, operations, measured time.

Prices are affine in the units kept (`tasks.pruning.planner.Price`). Bytes of a unit follow
from how the quantiser stores a matrix, operations from counting them in a model with one unit
less; the fixed part of both comes from the model as it is, exported and counted for real. Time
is fitted to a few candidates that are built and timed, and a plan counts only when the bundle
it gives has been built and timed, too: `plan_within`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.optimize import nnls
from torch import nn

from tasks.errors import ParamsError
from tasks.evaluation.footprint import flops
from tasks.evaluation.latency import p50_of
from tasks.modeling.checkpoint import twin
from tasks.modeling.surgery import keep_heads, keep_neurons, shapes_of
from tasks.problems.classification import Row, encode, pad, read_tokenizer
from tasks.problems.sampling import spread
from tasks.pruning.importance import LayerScores
from tasks.pruning.planner import Cost, Counts, Price, counts_of, exceeded, plan_budget
from tasks.pruning.sensitivity import Curve, smallest
from tasks.pruning.width import LayerPlan, apply, keep_best
from tasks.quantization.bundle import Form, build_bundle
from tasks.release.servable import file_bytes
from tasks.schema import Budget

LATENCY_TEXTS = 64
WARMUP = 8
AIM = 1.005
"""After a miss the price is set so much above what was measured, so that noise ends the search."""


@dataclass(frozen=True)
class Bench:
    """All that it takes to make a bundle of a model and to time it."""

    checkpoint: Path
    """Where tokenizer, labels and config are."""
    texts: Sequence[str]
    """Operations are counted for the one of median length, time is taken on a sample."""
    max_length: int
    profile: str
    quantize: Form
    rounds: int = 5
    """Walks through the sample."""

    @property
    def sample(self) -> list[str]:
        """At most `LATENCY_TEXTS` of the texts, evenly spread over them."""
        return spread(self.texts, LATENCY_TEXTS)

    def median_ids(self) -> Row:
        """Ids of the text of median length."""
        tokenizer = read_tokenizer(self.checkpoint, self.max_length)
        ids = sorted(encode(tokenizer, self.texts), key=len)
        return ids[len(ids) // 2]


def calibrate(
    model: nn.Module,
    scores: Sequence[LayerScores],
    bench: Bench,
    *,
    latency: bool,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Price]:
    """Prices of bytes and operations and, where asked for, of time.

    Time is linear here in the heads and in the neurons of all layers together, which share
    their width: non-negative least squares, relative to each candidate's p50. It needs five
    exports instead of one.

    That one is of the model without one head a layer, for a layer that lost any may need
    more of the graph (MPNet's: a kilobyte, to pick its rows of the shared position bias). A
    layer that keeps all is then overestimated by so much, and none is underestimated.
    """
    prices = unit_prices(model, bench)
    whole = _counts(scores)
    nearly = tuple((max(heads - 1, 1), neurons) for heads, neurons in whole)
    plans = _candidates(scores) if latency else [_plan(scores, nearly)]
    with bundles(model, plans, bench) as folders:
        sizes = [file_bytes(folder) for folder in folders]
        counts = [counts_of(plan) for plan in plans]
        prices["bytes"] = _through(prices["bytes"], counts, sizes)
        say(f"prune: a bundle of the uncut model has {prices['bytes'].of(whole):,.0f} bytes")
        if latency:
            times = p50(folders, bench)
            prices["latency_ms"] = _fit_latency(counts, times)
            timed = ", ".join(f"{time:.3f}" for time in times)
            say(f"prune: p50 of {len(plans)} candidates, widest to narrowest: {timed} ms")
    prices["flops"] = _through(prices["flops"], [whole], [operations(model, bench.median_ids())])
    return prices


def plan_within(
    curves: Sequence[Curve],
    scores: Sequence[LayerScores],
    budget: Budget,
    cost: Cost,
    real: Callable[[Sequence[LayerPlan]], Mapping[str, float]],
    *,
    attempts: int = 5,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[LayerPlan], dict[str, float]]:
    """Plan, build, measure; where a limit is missed, correct its price and plan again.

    Args:
        real: measures a plan, e.g. `measured`; by the names of the limits.

    Returns:
        A plan that was measured within the budget, and its figures.

    Raises:
        ParamsError: the budget is out of reach.
    """
    cost = dict(cost)
    for _ in range(attempts):
        plan = plan_budget(curves, scores, budget, cost)
        found = dict(real(plan))
        missed = exceeded(budget, found)
        shown = ", ".join(f"{name} {value:,.6g}" for name, value in found.items())
        say(f"prune: candidate measured: {shown}" + f"; over {', '.join(missed)}" * bool(missed))
        if not missed:
            return plan, found
        for name in missed:
            predicted = cost[name].of(counts_of(plan))
            cost[name] = cost[name].scaled(AIM * found[name] / predicted)
    name = missed[0]
    raised = f"{found[name] * 1.1:.3f}" if name == "latency_ms" else str(round(found[name] * 1.02))
    raise ParamsError(
        f"prune.budget.{name}: found {getattr(budget, name)}, expected at least about "
        f"{found[name]:,.6g}, which is what the last of {attempts} candidates came to",
        next_command=f"stillroom compress --set prune.budget.{name}={raised}",
    )


def measured(
    model: nn.Module, plan: Sequence[LayerPlan], bench: Bench, *, latency: bool
) -> dict[str, float]:
    """Bytes, operations and, where asked for, p50 in ms of the bundle that a plan gives."""
    found = {"flops": float(operations(candidate(model, plan), bench.median_ids()))}
    with bundles(model, [plan], bench) as folders:
        found["bytes"] = float(file_bytes(folders[0]))
        if latency:
            found["latency_ms"] = p50(folders, bench)[0]
    return found


def unit_prices(model: nn.Module, bench: Bench) -> dict[str, Price]:
    """Bytes and operations of one head and one neuron of each layer, nothing fixed.

    They are the difference that one unit less makes; a layer's only head cannot go, and is
    priced 0, which makes it part of what is fixed.
    """
    cut, row = twin(model), bench.median_ids()

    def state() -> dict[str, int]:
        return {"bytes": linear_bytes(cut, bench.quantize), "flops": operations(cut, row)}

    states = [state()]
    for index, shape in enumerate(shapes_of(model)):
        if len(shape.heads) > 1:
            keep_heads(cut, index, range(len(shape.heads) - 1))
        states.append(state())
        if shape.ffn > 1:
            keep_neurons(cut, index, range(shape.ffn - 1))
        states.append(state())
    prices = {}
    for name in states[0]:
        units = [float(old[name] - new[name]) for old, new in pairwise(states)]
        prices[name] = Price(0.0, tuple(units[::2]), tuple(units[1::2]))
    return prices


def linear_bytes(model: nn.Module, config: Form) -> int:
    """Bytes of all linear layers in a bundle.

    int8: a byte a weight and, with a scale for each output channel, four bytes for it and one
    for its zero point. Biases are fp32.
    """
    size = 4 if config.scheme == "none" else 1
    channel = 5 if config.scheme == "dynamic" and config.per_channel else 0
    return sum(
        module.weight.numel() * size
        + module.out_features * (channel + 4 * (module.bias is not None))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    )


def operations(model: nn.Module, row: Row) -> int:
    """Floating-point operations for one text's ids, a multiply-add as two."""
    batch, mask = pad([row], 0)
    model.eval()
    return flops(lambda: model(input_ids=batch, attention_mask=mask))


def candidate(model: nn.Module, plan: Sequence[LayerPlan]) -> nn.Module:
    """The model that a plan gives; shares with the model what the plan leaves alone."""
    whole = tuple((len(shape.heads), shape.ffn) for shape in shapes_of(model))
    same = counts_of(plan) == whole  # then slicing would copy every matrix for nothing
    return (twin(model) if same else apply(plan, twin(model))).eval()


@contextmanager
def bundles(
    model: nn.Module, plans: Sequence[Sequence[LayerPlan]], bench: Bench
) -> Iterator[list[Path]]:
    """Servable folders of the models that plans give; gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(index) for index in range(len(plans))]
        for plan, folder in zip(plans, folders, strict=True):
            build_bundle(
                candidate(model, plan), folder, bench.quantize, checkpoint=bench.checkpoint,
                max_length=bench.max_length, profile=bench.profile,
            )  # fmt: skip
        yield folders


def p50(folders: Sequence[Path], bench: Bench) -> list[float]:
    """Median time in ms from text to label, one thread, batch 1; the folders take turns."""
    return p50_of(folders, bench.sample, rounds=bench.rounds)


def _counts(scores: Sequence[LayerScores]) -> Counts:
    return tuple((len(score.heads), len(score.neurons)) for score in scores)


def _plan(scores: Sequence[LayerScores], counts: Counts) -> list[LayerPlan]:
    return [
        LayerPlan(keep_best(score.heads, heads), keep_best(score.neurons, neurons))
        for score, (heads, neurons) in zip(scores, counts, strict=True)
    ]


def _candidates(scores: Sequence[LayerScores]) -> list[list[LayerPlan]]:
    """Everything, the least of the one, of the other, half of both, the least of both."""
    whole = _counts(scores)
    least = [(smallest("heads", heads), smallest("neurons", neurons)) for heads, neurons in whole]
    pairs = list(zip(whole, least, strict=True))
    wanted = [
        whole,
        tuple((small[0], full[1]) for full, small in pairs),
        tuple((full[0], small[1]) for full, small in pairs),
        tuple((max(full[0] // 2, 1), max(full[1] // 2, small[1])) for full, small in pairs),
        tuple(least),
    ]
    return [_plan(scores, counts) for counts in dict.fromkeys(wanted)]


def _through(price: Price, counts: Sequence[Counts], true: Sequence[float]) -> Price:
    """The price with the fixed part that underestimates none of what was measured."""
    fixed = max(value - price.of(kept) for kept, value in zip(counts, true, strict=True))
    return Price(price.fixed + fixed, price.head, price.neuron)


def _fit_latency(counts: Sequence[Counts], times: Sequence[float]) -> Price:
    """Fixed time, time a head, time a neuron."""
    heads = [sum(heads for heads, _ in kept) for kept in counts]
    neurons = [sum(neurons for _, neurons in kept) for kept in counts]
    table = np.column_stack([np.ones(len(counts)), heads, neurons]) / np.array(times)[:, None]
    scale = np.abs(table).max(axis=0)
    (fixed, head, neuron), _ = nnls(table / scale, np.ones(len(counts)))
    layers = len(counts[0])
    return Price(
        float(fixed / scale[0]),
        (float(head / scale[1]),) * layers,
        (float(neuron / scale[2]),) * layers,
    )
