"""Let the pruned model recover: distillation from the same teacher, same cached logits.

python -m tasks.finetune
dvc repro finetune
"""

from __future__ import annotations

from tasks.evaluation.quality import quality
from tasks.modeling.checkpoint import (
    checkpoint_bytes,
    copy_checkpoint,
    load_checkpoint,
    parameters,
    save_checkpoint,
)
from tasks.params import Params
from tasks.paths import FINETUNED, PRUNED, TEACHER_LOGITS, TRAIN, VALIDATION
from tasks.problems.classification import logits_of, read_split, read_tokenizer
from tasks.release.gate import stage_limit
from tasks.stage import Metrics, read_metrics, run, say, write_history
from tasks.training.logit_cache import LogitCache
from tasks.training.trainer import Distillation, require_device, train


def main(params: Params) -> Metrics:
    config = params.finetune
    if not config.enabled:
        copy_checkpoint(PRUNED, FINETUNED)
        write_history("finetune", [])
        return {"enabled": False, "file_bytes": checkpoint_bytes(FINETUNED)}
    require_device(params.hardware)
    student = load_checkpoint(PRUNED, dropout=config.training.dropout)
    tokenizer = read_tokenizer(PRUNED, params.data.max_length)
    validation = read_split(VALIDATION)
    say(f"finetune: {parameters(student) / 1e6:.2f} M parameters")
    trained = train(
        student,
        stage="finetune",
        tokenizer=tokenizer,
        train_split=read_split(TRAIN),
        validation_split=validation,
        training=config.training,
        hardware=params.hardware,
        seed=params.seed,
        distillation=Distillation(LogitCache(TEACHER_LOGITS), config.temperature, config.alpha),
    )
    save_checkpoint(
        student, FINETUNED, parent=PRUNED, step={"stage": "finetune", "steps": trained.steps}
    )

    measured = quality(logits_of(student, tokenizer, validation.texts), validation.labels)
    teacher = read_metrics("baseline")["validation"]
    stage_limit("finetune", teacher, measured, params.gate.stage_drop.finetune)
    return {
        "runtime": {"resumed_from": trained.resumed_from},
        "steps": trained.steps,
        "enabled": True,
        "parameters": parameters(student),
        "file_bytes": checkpoint_bytes(FINETUNED),
        "validation": measured,
    }


if __name__ == "__main__":
    run("finetune", main)
