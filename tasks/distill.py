"""Make a student of the teacher: fewer layers, a trimmed vocabulary, the teacher's answers.

python -m tasks.distill
dvc repro distill
"""

from __future__ import annotations

import torch

from tasks.errors import ParamsError
from tasks.evaluation.quality import quality
from tasks.modeling.architecture import layers_of
from tasks.modeling.checkpoint import (
    checkpoint_bytes,
    copy_checkpoint,
    load_checkpoint,
    parameters,
    save_checkpoint,
)
from tasks.modeling.surgery import keep_layers, keep_positions, keep_vocabulary
from tasks.modeling.vocabulary import plain_tokenizer, trim, unknown_share
from tasks.params import Params
from tasks.paths import DISTILLED, TEACHER, TEACHER_LOGITS, TRAIN, VALIDATION
from tasks.problems.classification import logits_of, read_split
from tasks.release.gate import stage_limit
from tasks.stage import Metrics, read_metrics, run, say, write_history
from tasks.training.logit_cache import LogitCache
from tasks.training.trainer import Distillation, require_device, train


def main(params: Params) -> Metrics:
    config = params.distill
    if not config.enabled:
        copy_checkpoint(TEACHER, DISTILLED)
        write_history("distill", [])
        return {"enabled": False, "file_bytes": checkpoint_bytes(DISTILLED)}
    require_device(params.hardware)
    torch.manual_seed(params.seed)
    train_split, validation = read_split(TRAIN), read_split(VALIDATION)
    student = load_checkpoint(TEACHER, dropout=config.training.dropout)
    if max(config.layers) >= len(layers_of(student)):
        raise ParamsError(
            f"distill.layers: found {list(config.layers)}, expected indices under "
            f"{len(layers_of(student))}, the teacher's number of layers",
            next_command="stillroom compress --set 'distill.layers=[0, 2, 5]'",
        )
    keep_layers(student, config.layers)
    keep_positions(student, params.data.max_length)
    tokenizer_json = teacher_tokenizer = (TEACHER / "tokenizer.json").read_text("utf-8")
    if config.vocabulary.trim:
        smaller = trim(tokenizer_json, train_split.texts, min_count=config.vocabulary.min_count)
        pad = smaller.kept_ids.index(student.config.pad_token_id)
        keep_vocabulary(student, smaller.kept_ids, pad=pad)
        tokenizer_json = smaller.tokenizer_json
    tokenizer = plain_tokenizer(tokenizer_json, max_length=params.data.max_length)
    say(f"distill: {len(config.layers)} layers, {student.config.vocab_size} pieces, "
        f"{parameters(student) / 1e6:.1f} M parameters")  # fmt: skip

    trained = train(
        student,
        stage="distill",
        tokenizer=tokenizer,
        train_split=train_split,
        validation_split=validation,
        training=config.training,
        hardware=params.hardware,
        seed=params.seed,
        distillation=Distillation(LogitCache(TEACHER_LOGITS), config.temperature, config.alpha),
    )
    step = {"stage": "distill", "layers": list(config.layers),
            "vocabulary": student.config.vocab_size, "steps": trained.steps}  # fmt: skip
    save_checkpoint(student, DISTILLED, parent=TEACHER, step=step, tokenizer_json=tokenizer_json)

    measured = quality(logits_of(student, tokenizer, validation.texts), validation.labels)
    teacher = read_metrics("baseline")["validation"]
    stage_limit("distill", teacher, measured, params.gate.stage_drop.distill)
    return {
        "runtime": {"resumed_from": trained.resumed_from},
        "steps": trained.steps,
        "enabled": True,
        "vocabulary": student.config.vocab_size,
        "unknown_share": {
            "teacher": unknown_share(teacher_tokenizer, validation.texts),
            "student": unknown_share(tokenizer_json, validation.texts),
        },
        "parameters": parameters(student),
        "file_bytes": checkpoint_bytes(DISTILLED),
        "validation": measured,
    }


if __name__ == "__main__":
    run("distill", main)
