"""Fine-tune the pretrained model: the teacher, and what everything later is compared with.

    python -m tasks.baseline
    dvc repro baseline

The teacher is frozen from here on. It is also exported as a servable folder, which is what
serving falls back to and what the speed of ONNX Runtime in fp32 is measured on.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from transformers import PreTrainedModel

from tasks.errors import DataError
from tasks.modeling.checkpoint import (
    checkpoint_bytes,
    load_checkpoint,
    load_pretrained,
    parameters,
    save_checkpoint,
)
from tasks.paths import LABELS, PRETRAINED, TEACHER, TEACHER_SERVABLE, VALIDATION
from tasks.problems.classification import logits_of, read_labels, read_split
from tasks.quantization.export import export_servable
from tasks.schema import Params
from tasks.stage import Metrics, run, say
from tasks.training.teacher import fine_tune_teacher, require_floor
from tasks.training.trainer import discard_checkpoints, require_device


def main(params: Params) -> Metrics:
    require_device(params.hardware)
    labels = read_labels(LABELS)
    training = params.teacher.training
    model = beginning(labels, training.dropout, params.seed)
    tokenizer, trained = fine_tune_teacher(
        model, PRETRAINED, stage="baseline", training=training, hardware=params.hardware,
        max_length=params.data.max_length, seed=params.seed,
    )  # fmt: skip
    step = {"stage": "baseline", "pretrained": model.config.model_type, "steps": trained.steps}
    save_checkpoint(model, TEACHER, parent=PRETRAINED, step=step)
    shutil.copyfile(LABELS, TEACHER / "labels.json")
    discard_checkpoints("baseline")

    teacher = load_checkpoint(TEACHER)
    measured = require_floor(
        lambda texts: logits_of(teacher, tokenizer, texts), params.gate.baseline_floor,
        who="teacher", next_command="stillroom compress --set teacher.training.epochs=10",
    )  # fmt: skip
    say("baseline: exporting the teacher as a servable folder")
    export_servable(
        TEACHER,
        TEACHER_SERVABLE,
        max_length=params.data.max_length,
        profile=params.hardware.profile,
        sample_texts=read_split(VALIDATION, 16).texts,
    )
    return {
        "runtime": {"resumed_from": trained.resumed_from},
        "steps": trained.steps,
        "parameters": parameters(teacher),
        "file_bytes": checkpoint_bytes(TEACHER),
        "validation": measured,
    }


def beginning(labels: Sequence[str], dropout: float, seed: int) -> PreTrainedModel:
    """The pretrained model under a new head; a model of an earlier run as it was cut there.

    Raises:
        DataError: the earlier run's model knows other labels.
    """
    if not (PRETRAINED / "surgery.json").exists():
        return load_pretrained(PRETRAINED, classes=len(labels), dropout=dropout, seed=seed)
    if read_labels(PRETRAINED / "labels.json") != list(labels):
        raise DataError(
            f"teacher.path: found a model of an earlier run with other labels than the "
            f"{len(labels)} of this data set, expected the same",
            next_command="stillroom compress --set teacher.source=package",
        )
    return load_checkpoint(PRETRAINED, dropout=dropout)


if __name__ == "__main__":
    run("baseline", main)
