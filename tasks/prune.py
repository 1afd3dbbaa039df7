"""Remove what contributes least: layers, channels, heads, neurons, single weights.

python -m tasks.prune                # this stage alone, with params.yaml
dvc repro prune                      # with everything it depends on
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import TrainerCallback

from tasks.evaluation.outcome import outcome
from tasks.modeling.checkpoint import (
    checkpoint_bytes,
    copy_checkpoint,
    load_checkpoint,
    parameters,
    save_checkpoint,
)
from tasks.modeling.surgery import factorise_embeddings, keep_layers, shapes_of
from tasks.paths import DISTILLED, PRUNED, TEACHER, TEACHER_LOGITS, TRAIN, VALIDATION
from tasks.problems.classification import read_split, read_tokenizer
from tasks.pruning.budget import Goal, target_counts
from tasks.pruning.calibration import Calibration
from tasks.pruning.depth import block_influence, plan_depth, require_one_left
from tasks.pruning.importance import importance
from tasks.pruning.look import HEAT_MAP, Watch
from tasks.pruning.sparsify import sparsify
from tasks.pruning.watch import heat_map
from tasks.pruning.width import WidthPlan, apply, plan_counts, plan_width, share_left, unit_counts
from tasks.schema import Params
from tasks.stage import Metrics, run, say, write_history
from tasks.training.distillation import distil
from tasks.training.trainer import Trained, discard_checkpoints, require_device


def main(params: Params) -> Metrics:
    config, limit, seed = params.prune, params.data.max_length, params.seed + params.student_seed
    student = load_checkpoint(DISTILLED, dropout=config.training.dropout)
    full = shapes_of(student)
    if not config.enabled:
        copy_checkpoint(DISTILLED, PRUNED)
        write_history("prune", [])
        heat_map([], full, HEAT_MAP)
        return {"enabled": False, "file_bytes": checkpoint_bytes(PRUNED)}
    require_device(params.hardware)
    require_one_left(len(full), config.drop_layers)
    tokenizer, validation = read_tokenizer(DISTILLED, limit), read_split(VALIDATION)
    calibration = Calibration(student, tokenizer, read_split(TRAIN), config.calibration_samples,
                              params.seed)  # fmt: skip
    before, layers = parameters(student), list(range(len(full)))
    watch = Watch(tokenizer, validation, full, seed)
    trained = watch.begin(student)

    def look(recovery: str = "") -> None:
        nonlocal trained
        trained = watch.see(student, layers, trained)
        if recovery and config.rounds > 1:
            trained = recover(student, params, recovery, trained)

    for number in range(1, config.drop_layers + 1):
        stay = plan_depth(block_influence(student, calibration.batches()), 1)
        keep_layers(student, stay)
        layers = [layers[index] for index in stay]
        look(recovery=f"layer {number}")
    if config.embedding_rank:
        factorise_embeddings(student, config.embedding_rank)
        look(recovery="word table")

    plans: list[WidthPlan] = []
    goal = Goal()
    for number in range(1, config.rounds + 1):
        scores = importance(student, calibration.batches(), method=config.importance, seed=seed)
        if number == 1:
            original = unit_counts(scores)
            goal = target_counts(student, scores, tokenizer, validation, DISTILLED, params)
            watch.damage = goal.report or None
        share = [share_left(keep, number, config.rounds)
                 for keep in (config.heads_keep, config.ffn_keep, config.hidden_keep)]  # fmt: skip
        if goal.counts is not None:
            plan = plan_counts(scores, original, goal.counts, number, config.rounds)
        else:
            plan = plan_width(
                scores, heads_keep=share[0], ffn_keep=share[1], hidden_keep=share[2],
                scope=config.scope, original=original,
            )  # fmt: skip
        apply(plan, student)
        plans.append(plan)
        look(recovery=f"round {number}" if number < config.rounds else "")

    def train(model: nn.Module, callbacks: Sequence[TrainerCallback], part: str) -> None:
        nonlocal trained
        trained = recover(model, params, part, trained, callbacks)
        look()

    sparse = sparsify(
        student, config.sparsity, calibration, train=train, look=look, dense=DISTILLED,
        layers=layers, rank=config.embedding_rank, plans=plans,
    )  # fmt: skip
    kept = [{"heads": len(shape.heads), "ffn": shape.ffn} for shape in shapes_of(student)]
    say(f"prune: kept {kept}; {before / 1e6:.2f} → {parameters(student) / 1e6:.2f} M parameters")
    step = {"stage": "prune", "importance": config.importance, "scope": config.scope,
            "layers": layers, "kept": kept, "sparsity": sparse.share}  # fmt: skip
    save_checkpoint(student, PRUNED, parent=DISTILLED, step=step)
    discard_checkpoints("prune")
    return {
        "kept": kept,
        "layers": layers,
        "before": watch.before,
        "rounds": watch.rounds,
        **goal.report,
        "sparsity": {"share": sparse.share, "matrices": sparse.matrices},
        **outcome("prune", student, read_tokenizer(DISTILLED, limit), PRUNED,
                  max_drop=params.gate.stage_drop.prune),
    }  # fmt: skip


def recover(
    student: nn.Module, params: Params, part: str, before: Trained,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trained:  # fmt: skip
    """Train between two cuts, towards the same teacher as `finetune` does."""
    return distil(
        student,
        params.finetune,
        params.prune.training,
        stage="prune",
        tokenizer=read_tokenizer(DISTILLED, params.data.max_length),
        teacher=TEACHER,
        logits=TEACHER_LOGITS,
        hardware=params.hardware,
        max_length=params.data.max_length,
        seed=params.seed + params.student_seed,
        callbacks=callbacks,
        part=part,
        before=before,
    )


if __name__ == "__main__":
    run("prune", main)
