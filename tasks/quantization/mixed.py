"""Mixed precision by measurement: which layers cost most in eight bits, and the fewest to spare.

First and last layers are candidates like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.quantization.fidelity import Fidelity
from tasks.quantization.layers import Weighted


@dataclass(frozen=True)
class Cost:
    """What one layer alone costs when all others stay fp32."""

    layer: str
    node: str
    kl: float
    bytes: int
    """That it takes more if it stays fp32."""

    def as_dict(self) -> dict[str, object]:
        """For ``metrics/quantize.json``."""
        return {"layer": self.layer, "kl": self.kl, "bytes": self.bytes}


def sensitivity(
    nodes: Sequence[Weighted], kl_of: Callable[[Sequence[str]], float], *, bits: int
) -> list[Cost]:
    """Every layer's cost, the dearest first.

    Args:
        kl_of: divergence from the fp32 form when the named nodes stay fp32.
        bits: of a quantised weight.
    """
    names = [node.node for node in nodes]
    costs = [
        Cost(one.layer, one.node, kl_of([name for name in names if name != one.node]),
             one.bytes * (32 - bits) // 32)
        for one in nodes
    ]  # fmt: skip
    return sorted(costs, key=lambda cost: (-cost.kl, cost.layer))


@dataclass(frozen=True)
class Spared:
    """The layers that stay fp32, and what the model is then."""

    nodes: tuple[str, ...]
    fidelity: Fidelity
    enough: bool


def spare_fewest(
    ranked: Sequence[Cost], fidelity_of: Callable[[Sequence[str]], Fidelity],
    *, max_loss: float, max_flips: float,
) -> Spared:  # fmt: skip
    """Keep the dearest layers fp32, one more at a time, until the budget is kept.

    Returns the best that was seen, by flips, where even all of them do not suffice.
    """
    best: Spared | None = None
    for count in range(1, len(ranked) + 1):
        nodes = tuple(cost.node for cost in ranked[:count])
        fidelity = fidelity_of(nodes)
        if fidelity.within(max_loss, max_flips):
            return Spared(nodes, fidelity, enough=True)
        if best is None or fidelity.flip_rate < best.fidelity.flip_rate:
            best = Spared(nodes, fidelity, enough=False)
    if best is None:
        raise ValueError("found no layer, expected at least one")
    return best
