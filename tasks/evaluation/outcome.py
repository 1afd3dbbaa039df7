"""What a stage that changes the model says of the result, and whether it may stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer
from torch import nn

from tasks.evaluation.quality import quality
from tasks.modeling.checkpoint import checkpoint_bytes, parameters
from tasks.paths import VALIDATION
from tasks.problems.classification import logits_of, read_split
from tasks.release.gate import stage_limit
from tasks.stage import read_metrics


def outcome(
    stage: Literal["distill", "prune", "finetune"],
    model: nn.Module,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    max_drop: float,
) -> dict[str, Any]:
    """Size of a saved checkpoint and its quality on validation, for ``metrics/<stage>.json``.

    Raises:
        GateRefused: it lost more than `max_drop` points against the teacher.
    """
    validation = read_split(VALIDATION)
    measured = quality(logits_of(model, tokenizer, validation.texts), validation.labels)
    stage_limit(stage, read_metrics("baseline")["validation"], measured, max_drop)
    return {
        "enabled": True,
        "parameters": parameters(model),
        "file_bytes": checkpoint_bytes(folder),
        "validation": measured,
    }
