"""Quantisation-aware training: learn with the rounding that serving will do.

It begins where post-training quantisation would, learns towards the same teacher as `finetune`,
and what it simulated is what is written: the steps it learned are the scales of the file.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tasks.evaluation.quality import quality
from tasks.modeling.architecture import architecture_of
from tasks.modeling.checkpoint import load_checkpoint
from tasks.paths import FINETUNED, TEACHER, TEACHER_LOGITS
from tasks.problems.classification import Split, encode, logits_of, pad
from tasks.quantization.choice import Build
from tasks.quantization.confidence import fit_temperature, fold_temperature
from tasks.quantization.export import check_export, export_onnx
from tasks.quantization.fake import Grid, prepare, settle
from tasks.quantization.fidelity import Fidelity, compare, logits_one_by_one
from tasks.quantization.qdq import write_grids
from tasks.schema import Params
from tasks.stage import say
from tasks.training.distillation import distil
from tasks.training.trainer import discard_checkpoints, require_device


def train_aware(
    params: Params,
    target: Path,
    tokenizer: Tokenizer,
    validation: Split,
    exact: np.ndarray,
    texts: list[str],
    served: Build,
) -> tuple[Fidelity, float]:
    """Train a quantised twin of the recovered model and write its graph; its fidelity.

    Args:
        target: where the Q/DQ graph goes.
        exact: logits ``[texts, classes]`` of the fp32 form on validation.
        texts: training texts, for the first ranges.
        served: the form that post-training quantisation gave, for the same engine and with the
            same ``per_channel`` and ``embeddings``.

    Returns:
        What it answers as served, and the temperature that is folded into it.
    """
    config, profile = params.quantize.aware, served.profile
    require_device(params.hardware)
    model = load_checkpoint(FINETUNED, dropout=config.training.dropout)
    pad_id: int = model.config.pad_token_id
    prepare(
        model, (pad([row], pad_id) for row in encode(tokenizer, texts)), profile,
        per_channel=served.config.per_channel, embeddings=served.config.embeddings,
    )  # fmt: skip
    say("quantize: training with simulated int8")
    distil(
        model, params.finetune, config.training, stage="quantize", tokenizer=tokenizer,
        teacher=TEACHER, logits=TEACHER_LOGITS, hardware=params.hardware,
        max_length=params.data.max_length, seed=params.seed + params.student_seed,
    )  # fmt: skip
    discard_checkpoints("quantize")
    model.eval()
    # one by one is how it is served, but ranges are fixed: a batch answers alike
    simulated = logits_of(model, tokenizer, validation.texts)
    grids = settle(model)
    temperature = 1.0
    if params.quantize.calibrate_confidence:
        temperature = fit_temperature(simulated, validation.labels)
        fold_temperature(model, temperature)
        last = architecture_of(model).head[-1]
        grids[last] = _cooled(grids[last], temperature)
    with tempfile.TemporaryDirectory() as room:
        graph = Path(room) / "float.onnx"
        export_onnx(model, graph, max_length=params.data.max_length)
        check_export(model, graph, encode(tokenizer, validation.texts[:64]), pad_id=pad_id)
        write_grids(graph, target, model, grids)
    ids = encode(tokenizer, validation.texts)
    answers = logits_one_by_one(target, ids, weight_bits=7 if profile.reduce_range else 8,
                                runtime=served.answered_by)  # fmt: skip
    found = quality(answers, validation.labels)["accuracy"]
    say(f"quantize: trained with simulated int8: accuracy {found:.4f} on validation")
    return compare(exact, answers, validation.labels), temperature


def _cooled(grid: Grid, temperature: float) -> Grid:
    """The grid of a matrix that was divided by a temperature."""
    return replace(grid, weight_scale=grid.weight_scale / temperature)
