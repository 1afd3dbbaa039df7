"""A form for every engine that params list, and the one that serves: chosen on validation.

No engine is best everywhere, so none is assumed: each is built in the form that it has int8
kernels for, judged by what it answers, and timed in turn with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import onnx

from tasks import schema
from tasks.hardware import Profile
from tasks.quantization.fidelity import Fidelity
from tasks.quantization.forms import weight_bits
from tasks.quantization.readiness import not_ready
from tasks.quantization.search import Exam, attempt, quantise
from tasks.runtimes.interface import missing, opened

MARGIN = 1.05
"""Times faster that an engine must be than one listed before it: less is noise."""
TRAINED = "trained with simulated int8"
KEPT = tuple(field.name for field in fields(Fidelity))
"""Of a record, what a form lost."""


@dataclass(frozen=True)
class Build:
    """A model in the form that one engine serves."""

    runtime: str
    config: schema.Quantize
    profile: Profile
    model: Path
    record: Mapping[str, Any]
    """What `tasks.quantization.search.quantise` says of it."""
    within: bool
    """It keeps the budget, and the engine takes the graph."""
    absent: str | None
    """Why this machine could not run it; None where it did."""
    refused: Sequence[str] = ()
    """What `not_ready` holds against the graph, for TensorRT."""

    def retrained(self, fidelity: Fidelity, model: Path) -> Build:
        """The form for the same engine that training with simulated int8 gave: static Q/DQ.

        Its record still has the layers that lost most before, since they are why it was made.
        """
        found = {**fidelity.as_dict(), "kept_float": [], "action": TRAINED}
        tried = [*self.record["tried"], attempt(TRAINED, fidelity, model)]
        return replace(
            self, config=self.config.model_copy(update={"scheme": "static"}), model=model,
            record={**self.record, **found, "tried": tried},
            **judged(self.runtime, model, self.config, fidelity),
        )  # fmt: skip

    @property
    def answered_by(self) -> str:
        """The engine that its answers were compared with."""
        return "onnxruntime" if self.absent else self.runtime

    def as_dict(self) -> dict[str, Any]:
        """One of ``quantisation.runtimes`` in ``metrics/quantize.json``."""
        return {
            "runtime": self.runtime,
            "scheme": self.config.scheme,
            **{key: self.record[key] for key in KEPT},
            "tried": list(self.record["tried"]),
            "bytes": self.model.stat().st_size,
            "within": self.within,
            "answered_by": self.answered_by,
            "absent": self.absent,
            "not_ready": list(self.refused),
        }


def form_for(runtime: str, config: schema.Quantize) -> schema.Quantize:
    """The scheme that an engine has int8 kernels for: only ONNX Runtime has dynamic ones."""
    if runtime != "onnxruntime" and config.scheme == "dynamic":
        return config.model_copy(update={"scheme": "static"})
    return config


def build(
    runtime: str,
    exam: Exam,
    model: Path,
    config: schema.Quantize,
    profile: Profile,
    *,
    say: Callable[[str], None],
) -> Build:
    """Quantise for one engine and compare with the fp32 form, in that engine where it runs here.

    Args:
        model: where the graph goes.
    """
    form = form_for(runtime, config)
    fit = replace(profile, symmetric=True) if runtime == "tensorrt" else profile
    absent = missing(runtime, weight_bits=weight_bits(form, fit))
    if absent:
        say(f"quantize: {runtime}: {absent}; ONNX Runtime answers for it, unmeasured in speed")
    record = quantise(exam, model, form, fit, say=say, runtime="onnxruntime" if absent else runtime)
    if not absent:
        engine, absent = opened(model, runtime=runtime, weight_bits=weight_bits(form, fit))
        engine.close()
        if absent:
            say(f"quantize: {runtime}: {absent}; ONNX Runtime has answered for it")
    lost = Fidelity(**{key: record[key] for key in KEPT})
    return Build(
        runtime, form, fit, model, record, absent=absent, **judged(runtime, model, form, lost)
    )


def judged(
    runtime: str, model: Path, config: schema.Quantize, fidelity: Fidelity
) -> dict[str, Any]:
    """``within`` and ``refused`` of a build."""
    refused = not_ready(onnx.load(model)) if runtime == "tensorrt" else []
    kept = config.scheme == "none" or fidelity.within(config.max_loss, config.max_flips)
    return {"within": kept and not refused, "refused": refused}


def better(served: Build, trained: Build) -> Build:
    """Which of two forms for one engine serves: the one that keeps the budget; of two that do, or
    do not, the one that loses less of the accuracy, or as much in fewer bytes; else the first."""
    return min(
        served, trained,
        key=lambda made: (not made.within, made.record["drop"], made.model.stat().st_size),
    )  # fmt: skip


def choose(builds: Sequence[Build], p50: Mapping[str, float]) -> Build:
    """The fastest that keeps the budget, of those that ran here; the least loss if none keeps it.

    An engine has to be `MARGIN` times faster than one listed before it. Where none ran here, as
    on a machine without the GPU that they are for, the first listed is taken.

    Args:
        p50: ms from text to label, by runtime.
    """
    here = [made for made in builds if made.absent is None] or list(builds)
    kept = [made for made in here if made.within]
    if not kept:
        return min(here, key=lambda made: made.record["drop"])
    best = kept[0]
    for made in kept[1:]:
        timed = made.runtime in p50 and best.runtime in p50
        if timed and p50[made.runtime] * MARGIN < p50[best.runtime]:
            best = made
    return best
