"""What each layer is worth, and what may stay of it within a budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel

from tasks.problems.classification import Split, batches, encode, logits_of
from tasks.problems.sampling import spread
from tasks.pruning.cost import Bench, calibrate, measured, plan_within
from tasks.pruning.importance import ModelScores
from tasks.pruning.planner import Counts, counts_of
from tasks.pruning.sensitivity import divergence, narrowed, passed_over, sensitivity
from tasks.quantization.bundle import Form
from tasks.schema import Params
from tasks.stage import say

SENSITIVITY_TEXTS = 512
INT8 = Form(scheme="dynamic", per_channel=True, embeddings=True)
"""The form that a budget is about, whatever `quantize` does later: that is no input of pruning."""


@dataclass(frozen=True)
class Goal:
    """The units that each layer is to end with, None where shares decide; and the figures."""

    counts: Counts | None = None
    report: dict[str, Any] = field(default_factory=dict)


def target_counts(
    student: PreTrainedModel,
    scores: ModelScores,
    tokenizer: Tokenizer,
    validation: Split,
    checkpoint: Path,
    params: Params,
) -> Goal:
    """Measure the curves that params ask for, and plan within the budget if there is one.

    Damage is the divergence from the uncut student's answers on validation texts.

    Raises:
        ParamsError: the budget cannot be met.
    """
    config = params.prune
    asked = any(config.budget.model_dump().values())
    if not (asked or config.sensitivity):
        return Goal()
    texts = spread(validation.texts, SENSITIVITY_TEXTS)
    ids = encode(tokenizer, texts)
    reference = logits_of(student, tokenizer, texts)
    pad_id: int = student.config.pad_token_id

    def damage(model: nn.Module) -> float:
        return divergence(model, reference, batches(ids, pad_id))

    curves = sensitivity(student, scores.layers, damage, say=say)
    report: dict[str, Any] = {
        "sensitivity": [asdict(curve) for curve in curves],
        "sensitivity_layers": passed_over(student, damage),
        "sensitivity_channels": narrowed(student, scores.channels, damage),
    }
    if not asked:
        return Goal(report=report)
    bench = Bench(
        checkpoint=checkpoint, texts=texts, max_length=params.data.max_length,
        profile=params.hardware.profile, quantize=INT8,
    )  # fmt: skip
    latency = config.budget.latency_ms > 0
    cost = calibrate(student, scores.layers, bench, latency=latency, say=say)
    plan, found = plan_within(
        curves, scores.layers, config.budget, cost,
        lambda candidate: measured(student, candidate, bench, latency=latency), say=say,
    )  # fmt: skip
    latency_ms = found.pop("latency_ms", None)
    if latency_ms is not None:
        report["runtime"] = {"budget_latency_ms": latency_ms}
    return Goal(counts_of(plan), {**report, "budget": found})
