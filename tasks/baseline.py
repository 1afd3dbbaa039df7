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

from tasks.errors import DataError, GateRefused
from tasks.evaluation.quality import quality
from tasks.modeling.checkpoint import (
    checkpoint_bytes,
    load_checkpoint,
    load_pretrained,
    parameters,
    save_checkpoint,
)
from tasks.modeling.surgery import positions_needed
from tasks.paths import (
    LABELS,
    PRETRAINED,
    TEACHER,
    TEACHER_SERVABLE,
    TRAIN,
    VALIDATION,
)
from tasks.problems.classification import logits_of, read_labels, read_split, read_tokenizer
from tasks.quantization.export import export_servable
from tasks.schema import Params
from tasks.stage import Metrics, run, say
from tasks.training.trainer import discard_checkpoints, require_device, train


def main(params: Params) -> Metrics:
    require_device(params.hardware)
    labels = read_labels(LABELS)
    training = params.teacher.training
    model = beginning(labels, training.dropout, params.seed)
    positions_needed(model, params.data.max_length)  # refused before training, if there are fewer
    tokenizer = read_tokenizer(PRETRAINED, params.data.max_length)
    validation = read_split(VALIDATION)
    say(f"baseline: fine-tuning {parameters(model) / 1e6:.1f} M parameters")
    trained = train(
        model,
        stage="baseline",
        tokenizer=tokenizer,
        train_split=read_split(TRAIN),
        validation_split=validation,
        training=training,
        hardware=params.hardware,
        seed=params.seed,
    )
    step = {"stage": "baseline", "pretrained": model.config.model_type, "steps": trained.steps}
    save_checkpoint(model, TEACHER, parent=PRETRAINED, step=step)
    shutil.copyfile(LABELS, TEACHER / "labels.json")
    discard_checkpoints("baseline")

    teacher = load_checkpoint(TEACHER)
    measured = quality(logits_of(teacher, tokenizer, validation.texts), validation.labels)
    floor = params.gate.baseline_floor
    if measured["accuracy"] < floor:
        raise GateRefused(
            f"gate.baseline_floor: the teacher has accuracy {measured['accuracy']:.4f} on "
            f"validation, expected at least {floor}",
            next_command="stillroom compress --set teacher.training.epochs=10",
        )
    say("baseline: exporting the teacher as a servable folder")
    export_servable(
        TEACHER,
        TEACHER_SERVABLE,
        max_length=params.data.max_length,
        profile=params.hardware.profile,
        sample_texts=validation.texts[:16],
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
