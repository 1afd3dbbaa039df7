"""Remove what contributes least: attention heads and feed-forward neurons.

python -m tasks.prune                # this stage alone, with params.yaml
dvc repro prune                      # with everything it depends on
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
from tasks.modeling.surgery import shapes_of
from tasks.params import Params
from tasks.paths import DISTILLED, PRUNED, TRAIN, VALIDATION
from tasks.problems.classification import (
    batches,
    encode,
    logits_of,
    read_split,
    read_tokenizer,
)
from tasks.pruning.importance import importance
from tasks.pruning.width import apply, plan_width
from tasks.release.gate import stage_limit
from tasks.stage import Metrics, read_metrics, run, say


def main(params: Params) -> Metrics:
    config = params.prune
    if not config.enabled:
        copy_checkpoint(DISTILLED, PRUNED)
        return {"enabled": False, "file_bytes": checkpoint_bytes(PRUNED)}
    student = load_checkpoint(DISTILLED)
    tokenizer = read_tokenizer(DISTILLED, params.data.max_length)
    calibration = encode(tokenizer, read_split(TRAIN).texts)[: config.calibration_samples]
    scores = importance(
        student,
        ((ids, mask) for _, ids, mask in batches(calibration, student.config.pad_token_id)),
        method=config.importance,
        seed=params.seed,
    )
    plan = plan_width(
        scores, heads_keep=config.heads_keep, ffn_keep=config.ffn_keep, scope=config.scope
    )
    before = parameters(student)
    pruned = apply(plan, student)
    kept = [{"heads": len(shape.heads), "ffn": shape.ffn} for shape in shapes_of(pruned)]
    say(f"prune: kept {kept}; {before / 1e6:.2f} → {parameters(pruned) / 1e6:.2f} M parameters")
    step = {"stage": "prune", "importance": config.importance, "scope": config.scope, "kept": kept}
    save_checkpoint(pruned, PRUNED, parent=DISTILLED, step=step)

    validation = read_split(VALIDATION)
    measured = quality(logits_of(pruned, tokenizer, validation.texts), validation.labels)
    teacher = read_metrics("baseline")["validation"]
    stage_limit("prune", teacher, measured, params.gate.stage_drop.prune)
    return {
        "enabled": True,
        "kept": kept,
        "parameters": parameters(pruned),
        "file_bytes": checkpoint_bytes(PRUNED),
        "validation": measured,
    }


if __name__ == "__main__":
    run("prune", main)
