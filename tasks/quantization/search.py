"""Quantise, measure what it cost, and spare the layers that cost most until the budget is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks import schema
from tasks.hardware import Profile
from tasks.problems.classification import Row
from tasks.problems.sampling import evenly
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
    ids: Sequence[Row]
    """Piece ids of validation texts."""
    labels: np.ndarray
    exact: np.ndarray
    """Logits ``[texts, classes]`` of the fp32 form."""
    calibration: Sequence[Row]
    """Piece ids of training texts."""


@dataclass(frozen=True)
class Forms:
    """Writes forms of the model under examination and measures them."""

    exam: Exam
    config: schema.Quantize
    profile: Profile
    runtime: str = "onnxruntime"
    """The engine that answers while answers are compared."""

    @property
    def bits(self) -> int:
        """How far int8 weights reach."""
        return weight_bits(self.config, self.profile)

    def write(self, target: Path, keep_float: Sequence[str] = ()) -> None:
        """The form that params ask for, but for the named nodes."""
        write_form(
            self.exam.graph, target, self.config, self.profile,
            calibration=self.exam.calibration, keep_float=keep_float,
        )  # fmt: skip

    def fidelity(self, target: Path, keep_float: Sequence[str] = ()) -> Fidelity:
        """Write it and compare it with the fp32 form, on all texts."""
        self.write(target, keep_float)
        found = self.logits(target, self.exam.ids)
        return compare(self.exam.exact, found, self.exam.labels)

    def logits(self, target: Path, ids: Sequence[Row]) -> np.ndarray:
        """Logits ``[texts, classes]`` of a form as it is served."""
        return logits_one_by_one(target, ids, weight_bits=self.bits, runtime=self.runtime)

    def costs(self, target: Path) -> list[Cost]:
        """What each layer costs alone, on `SENSITIVITY_TEXTS` texts."""
        where = evenly(len(self.exam.ids), SENSITIVITY_TEXTS)
        exact, ids = self.exam.exact[where], [self.exam.ids[place] for place in where]

        def kl_of(keep_float: Sequence[str]) -> float:
            self.write(target, keep_float)
            return divergence(exact, self.logits(target, ids))

        bits = 16 if self.config.scheme in ("half", "bf16") else self.config.bits
        return sensitivity(self.exam.nodes, kl_of, bits=bits)

    def diverges(self, target: Path) -> dict[str, Any] | None:
        """The first layer whose output is far off, on `DIVERGENCE_TEXTS` texts."""
        ids = [self.exam.ids[place] for place in evenly(len(self.exam.ids), DIVERGENCE_TEXTS)]
        return first_divergence(
            self.exam.graph, target, self.exam.nodes, ids, weight_bits=self.bits
        )


def quantise(
    exam: Exam,
    target: Path,
    config: schema.Quantize,
    profile: Profile,
    *,
    say: Callable[[str], None],
    runtime: str = "onnxruntime",
) -> dict[str, Any]:
    """Write the form that params ask for, with as many layers in fp32 as the budget takes.

    Returns what ``metrics/quantize.json`` says of it under ``quantisation``.
    """
    forms = Forms(exam, config, profile, runtime)
    limits = {"max_loss": config.max_loss, "max_flips": config.max_flips}
    chosen = forms.fidelity(target)
    tried = [attempt(config.scheme, chosen, target)]
    say(f"quantize: {config.scheme}: {said(chosen)}, KL {chosen.kl:.4f}")
    within = config.scheme == "none" or chosen.within(**limits)
    diverged = None if config.scheme == "none" else forms.diverges(target)
    kept: tuple[str, ...] = ()
    ranked: list[Cost] = []
    action = "none: within the budget"
    if (config.sensitivity and config.scheme != "none") or not within:
        say(f"quantize: what each of {len(exam.nodes)} layers costs alone")
        scratch = target.with_name("alone.onnx")
        ranked = forms.costs(scratch)
        scratch.unlink(missing_ok=True)
    if not within:
        spared = spare_fewest(ranked, lambda nodes: forms.fidelity(target, nodes), **limits)
        kept, chosen = spared.nodes, spared.fidelity
        forms.write(target, kept)  # the last that was tried need not be the best
        action = f"{len(kept)} of {len(exam.nodes)} layers kept in fp32"
        action += "" if spared.enough else ", and the budget is still not kept"
        tried.append(attempt(action, chosen, target))
        say(f"quantize: {action}: {said(chosen)}")
    layer = {node.node: node.layer for node in exam.nodes}
    return {
        "precision": precision(config),
        "runtime": runtime,
        **chosen.as_dict(),
        "loss_budget": config.max_loss,
        "first_divergence": diverged,
        "sensitivity": [cost.as_dict() for cost in ranked],
        "kept_float": [layer[name] for name in kept],
        "tried": tried,
        "action": action,
    }


def attempt(what: str, fidelity: Fidelity, file: Path) -> dict[str, Any]:
    """One of ``tried``."""
    return {"what": what, **fidelity.as_dict(), "bytes": file.stat().st_size}


def said(fidelity: Fidelity) -> str:
    """Flips and drop, for a line of progress."""
    return f"flips {fidelity.flip_rate:.2%}, drop {fidelity.drop:.2f} points"
