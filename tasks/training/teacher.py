"""Fine-tune a pretrained model as a teacher, and refuse one that is not worth copying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from tasks import schema
from tasks.errors import GateRefused
from tasks.evaluation.quality import quality
from tasks.modeling.checkpoint import parameters
from tasks.modeling.surgery import positions_needed
from tasks.paths import TRAIN, VALIDATION
from tasks.problems.classification import read_split, read_tokenizer
from tasks.stage import Metrics, say
from tasks.training.trainer import Trained, read_rows, train


def fine_tune_teacher(
    model: PreTrainedModel,
    folder: Path,
    *,
    stage: str,
    training: schema.Training,
    hardware: schema.Hardware,
    max_length: int,
    seed: int,
) -> tuple[Tokenizer, Trained]:
    """Train in place on the training split.

    Args:
        folder: where the model is from, with its tokenizer.

    Raises:
        ParamsError: it has fewer positions than `max_length`; before training.
        UnavailableError: a GPU is asked for where there is none.
    """
    positions_needed(model, max_length)
    tokenizer = read_tokenizer(folder, max_length)
    say(f"{stage}: fine-tuning {parameters(model) / 1e6:.1f} M parameters")
    trained = train(
        model,
        stage=stage,
        rows=read_rows(TRAIN, tokenizer),
        validation=read_rows(VALIDATION, tokenizer),
        training=training,
        hardware=hardware,
        seed=seed,
    )
    return tokenizer, trained


def require_floor(
    ask: Callable[[Sequence[str]], np.ndarray], floor: float, *, who: str, next_command: str
) -> Metrics:
    """Quality on validation, at least ``gate.baseline_floor``.

    Args:
        ask: texts to logits ``[texts, classes]``.
        who: answers, for the message.
        next_command: what may mend it.

    Raises:
        GateRefused: its accuracy is below the floor.
    """
    validation = read_split(VALIDATION)
    measured = quality(ask(validation.texts), validation.labels)
    if measured["accuracy"] < floor:
        raise GateRefused(
            f"gate.baseline_floor: the {who} has accuracy {measured['accuracy']:.4f} on "
            f"validation, expected at least {floor}",
            next_command=next_command,
        )
    return measured
