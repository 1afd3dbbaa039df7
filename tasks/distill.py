"""Make a student and teach it: fewer layers, a trimmed vocabulary, the teacher's answers.

python -m tasks.distill
dvc repro distill
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from tasks.evaluation.outcome import outcome
from tasks.modeling.architecture import layers_of
from tasks.modeling.averaging import average
from tasks.modeling.checkpoint import (
    checkpoint_bytes,
    copy_checkpoint,
    load_checkpoint,
    parameters,
    save_checkpoint,
)
from tasks.modeling.student import Beginning, begin
from tasks.modeling.vocabulary import plain_tokenizer, unknown_share
from tasks.paths import (
    DISTILLED,
    EARLY,
    ELSEWHERE,
    STUDENT,
    TEACHER,
    TEACHER_LOGITS,
    TRAIN,
    VALIDATION,
)
from tasks.problems.classification import logits_of, read_labels, read_split
from tasks.schema import Params
from tasks.stage import Metrics, run, say, write_history
from tasks.training import logit_cache
from tasks.training.distillation import distil
from tasks.training.early import KeepEarly
from tasks.training.trainer import Trained, discard_checkpoints, require_device, scratch

STEP_BETWEEN_STUDENTS = 1009
"""Between the seeds of students that are averaged."""


def main(params: Params) -> Metrics:
    config = params.distill
    if not config.enabled:
        copy_checkpoint(TEACHER, DISTILLED)
        write_history("distill", [])
        return {"enabled": False, "file_bytes": checkpoint_bytes(DISTILLED)}
    require_device(params.hardware)
    teacher, logits, trained = TEACHER, TEACHER_LOGITS, Trained(0, 0, [])
    for number, layers in enumerate(config.assistants, start=1):
        start = beginning(params, layers)
        trained = learn(params, start, teacher, logits, f"assistant {number}", trained)
        teacher, logits = ask(params, start, scratch("distill") / f"asked {number}")

    students = []
    for number in range(config.students):
        start = beginning(params, config.layers)
        several = bool(config.assistants) or config.students > 1
        part = f"student {number + 1}" if several else ""
        trained = learn(params, start, teacher, logits, part, trained, number)
        students.append(start.model)
    student = average(students)
    save(params, start, student, DISTILLED, trained.steps)
    if config.early:
        shutil.copyfile(scratch("distill") / EARLY, DISTILLED / EARLY)
    discard_checkpoints("distill")

    tokenizer = plain_tokenizer(start.tokenizer_json, max_length=params.data.max_length)
    before = (start.parent / "tokenizer.json").read_text("utf-8")
    places = {"validation": VALIDATION, "elsewhere": ELSEWHERE}
    return {
        "runtime": {"resumed_from": trained.resumed_from},
        "steps": trained.steps,
        "source": config.student.source,
        "vocabulary": student.config.vocab_size,
        "unknown_share": {
            place: {"source": unknown_share(before, texts),
                    "student": unknown_share(start.tokenizer_json, texts)}
            for place, path in places.items() if (texts := list(logit_cache.stored_texts(path)))
        },
        **outcome("distill", student, tokenizer, DISTILLED,
                  max_drop=params.gate.stage_drop.distill),
    }  # fmt: skip


def beginning(params: Params, layers: Sequence[int]) -> Beginning:
    """The student before it has learned anything."""
    start = begin(
        params.distill,
        layers,
        teacher=TEACHER,
        fetched=STUDENT,
        labels=read_labels(TEACHER / "labels.json"),
        max_length=params.data.max_length,
        texts=read_split(TRAIN).texts,
        seed=params.seed + params.student_seed,
    )
    say(f"distill: {len(layers_of(start.model))} layers, {start.model.config.vocab_size} pieces, "
        f"{parameters(start.model) / 1e6:.1f} M parameters")  # fmt: skip
    return start


def learn(
    params: Params,
    start: Beginning,
    teacher: Path,
    logits: Path,
    part: str,
    before: Trained,
    number: int = 0,
) -> Trained:
    """Train one student, or one assistant, in place."""
    config = params.distill
    early = [KeepEarly(scratch("distill") / EARLY, config.early)] if config.early else []
    return distil(
        start.model,
        config,
        config.training,
        stage="distill",
        tokenizer=plain_tokenizer(start.tokenizer_json, max_length=params.data.max_length),
        teacher=teacher,
        logits=logits,
        hardware=params.hardware,
        max_length=params.data.max_length,
        seed=params.seed + params.student_seed + STEP_BETWEEN_STUDENTS * number,
        callbacks=early,
        part=part,
        before=before,
    )


def ask(params: Params, start: Beginning, folder: Path) -> tuple[Path, Path]:
    """Make an assistant the next one's teacher: its checkpoint, and its logits cached."""
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint, logits = folder / "checkpoint", folder / "logits"
    save(params, start, start.model, checkpoint, 0)
    assistant = load_checkpoint(checkpoint)
    tokenizer = plain_tokenizer(start.tokenizer_json, max_length=params.data.max_length)
    logit_cache.write(
        logits,
        logit_cache.asked_texts(TRAIN, TEACHER_LOGITS),
        len(read_labels(TEACHER / "labels.json")),
        lambda texts: logits_of(assistant, tokenizer, texts),
    )
    return checkpoint, logits


def save(
    params: Params, start: Beginning, model: PreTrainedModel, folder: Path, steps: int
) -> None:
    """Save a student with its lineage and the teacher's labels."""
    step = {"stage": "distill", "source": params.distill.student.source,
            "layers": len(layers_of(model)), "vocabulary": model.config.vocab_size,
            "steps": steps}  # fmt: skip
    save_checkpoint(
        model, folder, parent=start.parent, step=step, tokenizer_json=start.tokenizer_json
    )
    shutil.copyfile(TEACHER / "labels.json", folder / "labels.json")


if __name__ == "__main__":
    run("distill", main)
