"""Let the pruned model recover: distillation from the same teacher, same cached logits.

python -m tasks.finetune
dvc repro finetune
"""

from __future__ import annotations

from tasks.evaluation.outcome import outcome
from tasks.modeling.checkpoint import (
    checkpoint_bytes,
    copy_checkpoint,
    load_checkpoint,
    parameters,
    read_shapes,
    save_checkpoint,
)
from tasks.modeling.exits import require_exits
from tasks.paths import FINETUNED, PRUNED, TEACHER, TEACHER_LOGITS
from tasks.problems.classification import read_tokenizer
from tasks.pruning.sparsity import sparsity_of
from tasks.schema import Params
from tasks.stage import Metrics, run, say, write_history
from tasks.training.distillation import distil
from tasks.training.exits import add_exits
from tasks.training.schedule import rewound
from tasks.training.trainer import discard_checkpoints, require_device


def main(params: Params) -> Metrics:
    config, exits = params.finetune, params.exits.layers
    require_exits(exits, len(read_shapes(PRUNED)))
    tokenizer = read_tokenizer(PRUNED, params.data.max_length)
    if not config.enabled:
        copy_checkpoint(PRUNED, FINETUNED)
        write_history("finetune", [])
        heads = add_exits(load_checkpoint(FINETUNED), tokenizer, FINETUNED, exits) if exits else {}
        return {"enabled": False, "file_bytes": checkpoint_bytes(FINETUNED), **heads}
    require_device(params.hardware)
    student = load_checkpoint(PRUNED, dropout=config.training.dropout)
    training = config.training
    if config.rewind:
        training = rewound(params.distill.training, training)
    say(f"finetune: {parameters(student) / 1e6:.2f} M parameters")
    trained = distil(
        student,
        config,
        training,
        stage="finetune",
        tokenizer=tokenizer,
        teacher=TEACHER,
        logits=TEACHER_LOGITS,
        hardware=params.hardware,
        max_length=params.data.max_length,
        seed=params.seed + params.student_seed,
    )
    step = {"stage": "finetune", "steps": trained.steps}
    save_checkpoint(student, FINETUNED, parent=PRUNED, step=step)
    heads = add_exits(student, tokenizer, FINETUNED, exits) if exits else {}
    discard_checkpoints("finetune")
    return {
        "runtime": {"resumed_from": trained.resumed_from},
        "steps": trained.steps,
        "sparsity": sparsity_of(student),
        **heads,
        **outcome("finetune", student, tokenizer, FINETUNED,
                  max_drop=params.gate.stage_drop.finetune),
    }  # fmt: skip


if __name__ == "__main__":
    run("finetune", main)
