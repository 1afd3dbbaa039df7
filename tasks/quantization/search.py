"""Quantise, measure what it cost, and spare the layers that cost most until the budget is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks import schema
from tasks.hardware import Profile
from tasks.quantization.fidelity import (
    Fidelity,
    compare,
    divergence,
    first_divergence,
    logits_one_by_one,
)
from tasks.quantization.forms import precision, weight_bits, write_form
from tasks.quantization.layers import Weighted
from tasks.quantization.mixed import Cost, sensitivity, spare_fewest

SENSITIVITY_TEXTS = 256
DIVERGENCE_TEXTS = 32


@dataclass(frozen=True)
class Exam:
    """The fp32 form of a model, and the texts that its quantised forms are compared on."""

    graph: Path
    nodes: Sequence[Weighted]
    ids: Sequence[Sequence[int]]
    """Piece ids of validation texts."""
    labels: np.ndarray
    exact: np.ndarray
    """Logits ``[texts, classes]`` of the fp32 form."""
    calibration: Sequence[Sequence[int]]
    """Piece ids of training texts."""


def quantise(
    exam: Exam,
    target: Path,
    config: schema.Quantize,
    profile: Profile,
    *,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the form that params ask for, with as many layers in fp32 as the budget takes.

    Returns what ``metrics/quantize.json`` says of it under ``quantisation``.
    """
    bits = weight_bits(config, profile)

    def form(keep_float: Sequence[str], path: Path) -> Path:
        write_form(exam.graph, path, config, profile, calibration=exam.calibration,
                   keep_float=keep_float)  # fmt: skip
        return path

    def fidelity_of(path: Path) -> Fidelity:
        found = logits_one_by_one(path, exam.ids, weight_bits=bits)
        return compare(exam.exact, found, exam.labels)

    plain = fidelity_of(form((), target))
    tried: list[dict[str, Any]] = [
        {"what": config.scheme, **plain.as_dict(), "bytes": target.stat().st_size}
    ]
    limits = {"max_loss": config.max_loss, "max_flips": config.max_flips}
    say(f"quantize: {config.scheme}: flips {plain.flip_rate:.2%}, drop {plain.drop:.2f} points, "
        f"KL {plain.kl:.4f}")  # fmt: skip
    kept: tuple[str, ...] = ()
    chosen, ranked = plain, list[Cost]()
    within = config.scheme == "none" or plain.within(**limits)
    if config.sensitivity or not within:
        scratch = target.with_name("alone.onnx")
        say(f"quantize: what each of {len(exam.nodes)} layers costs alone")
        ranked = sensitivity(exam.nodes, lambda keep: divergence(
            exam.exact[:SENSITIVITY_TEXTS],
            logits_one_by_one(form(keep, scratch), exam.ids[:SENSITIVITY_TEXTS], weight_bits=bits),
        ), bits=config.bits)  # fmt: skip
        scratch.unlink(missing_ok=True)
    diverged = None
    if config.scheme != "none":
        diverged = first_divergence(exam.graph, target, exam.nodes, exam.ids[:DIVERGENCE_TEXTS],
                                    weight_bits=bits)  # fmt: skip
    action = "none: within the budget"
    if not within:
        spared = spare_fewest(ranked, lambda nodes: fidelity_of(form(nodes, target)), **limits)
        kept, chosen = spared.nodes, spared.fidelity
        form(kept, target)
        action = (f"{len(kept)} of {len(exam.nodes)} layers kept in fp32"
                  + ("" if spared.enough else ", and the budget is still not kept"))  # fmt: skip
        tried.append({"what": action, **chosen.as_dict(), "bytes": target.stat().st_size})
        say(f"quantize: {action}: flips {chosen.flip_rate:.2%}, drop {chosen.drop:.2f} points")
    layer = {node.node: node.layer for node in exam.nodes}
    return {
        "precision": precision(config),
        "runtime": "onnxruntime",
        **chosen.as_dict(),
        "loss_budget": config.max_loss,
        "first_divergence": diverged,
        "sensitivity": [cost.as_dict() for cost in ranked],
        "kept_float": [layer[name] for name in kept],
        "tried": tried,
        "action": action,
    }
