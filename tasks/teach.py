"""Ask the teacher once: cache its logits for every text that a student will learn from.

    python -m tasks.teach
    dvc repro teach

These are the training texts, unlabelled ones of the user's or of a package, texts that a small
decoder writes, and altered copies of the training texts. Students read the cache, so the teacher's
forward pass is paid once, not once an epoch. Further teachers are asked the same, and the logits
of all averaged; one of them may be the student's own pretrained model, which is fine-tuned here.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from torch import nn

from tasks.errors import DataError
from tasks.modeling.checkpoint import load_checkpoint, load_pretrained
from tasks.modeling.surgery import positions_needed
from tasks.paths import (
    SECOND,
    TEACHER,
    TEACHER_LOGITS,
    TEACHERS,
    TRAIN,
    UNLABELLED,
    VALIDATION,
    WRITER,
)
from tasks.problems.augmentation import Seen, augment
from tasks.problems.classification import logits_of, read_labels, read_split, read_tokenizer
from tasks.processor import native_bf16
from tasks.schema import Params
from tasks.stage import Metrics, run, say, write_history
from tasks.training import logit_cache
from tasks.training.teacher import fine_tune_teacher, require_floor
from tasks.training.trainer import discard_checkpoints, require_device
from tasks.training.writer import Lines, fine_tune, read_writer, write


def main(params: Params) -> Metrics:
    copies = params.teach.augment.copies
    labels = read_labels(TEACHER / "labels.json")
    names = json.loads((TEACHERS / "teachers.json").read_text("utf-8"))
    folders = [TEACHER, *(TEACHERS / name for name in names)]
    teachers = [read_teacher(folder, labels, params.data.max_length) for folder in folders]
    for name, teacher in zip(names, teachers[1:], strict=True):
        require_floor(
            partial(mean_logits, [teacher]), params.gate.baseline_floor,
            who=f"teacher {name}", next_command="stillroom compress --set teach.teachers=DIR",
        )  # fmt: skip
    second = writer = None
    written: list[str] = []
    if params.teach.second.enabled:
        student, second = fine_tune_second(params, labels)
        teachers.append(student)
    else:
        write_history("teach", [])
    if params.teach.writer.enabled:
        written, writer = write_texts(params, labels)
    rows = {path: pq.read_metadata(path).num_rows for path in (TRAIN, UNLABELLED)}
    # as it was trained; three times as fast where the processor can, far slower where it cannot
    half = params.teacher.training.precision == "bf16" and native_bf16()
    # a splice needs all training texts at hand; without copies they are read as they are asked
    originals = list(logit_cache.stored_texts(TRAIN)) if copies else []

    texts = logit_cache.write(
        TEACHER_LOGITS, logit_cache.stored_texts(TRAIN), len(labels),
        lambda texts: mean_logits(teachers, texts, half=half),
        extra=chain(
            logit_cache.stored_texts(UNLABELLED),
            written,
            augment(originals, params.teach.augment, seed=params.seed),
        ),
        progress=lambda done, total: say(f"teach: {done}/{total} texts"),
    )  # fmt: skip
    if writer or second:
        discard_checkpoints("teach")
    accuracy, confidence = sureness(logit_cache.LogitCache(TEACHER_LOGITS), TRAIN)
    say(f"teach: right on {accuracy:.1%} of the training texts, mean confidence {confidence:.3f}")
    augmented = logit_cache.extra_rows(TEACHER_LOGITS) - rows[UNLABELLED] - len(written)
    return {
        "texts": texts,
        "unlabelled": rows[UNLABELLED],
        "written": len(written),
        "augmented": augmented,
        "dropped_copies": copies * rows[TRAIN] - augmented,
        "teachers": len(teachers),
        "writer": writer,
        "second": second,
        "train_accuracy": accuracy,
        "train_confidence": confidence,
    }


def write_texts(params: Params, labels: Sequence[str]) -> tuple[list[str], Metrics]:
    """Texts like the training texts, and what the decoder that wrote them has to say.

    Its checkpoint stays, so that a run that is cut off later does not train it again.
    """
    require_device(params.hardware)
    decoder, config, longest = read_writer(WRITER), params.teach.writer, params.data.max_length
    size = sum(weight.numel() for weight in decoder.model.parameters())
    say(f"teach: fine-tuning the writer, {size / 1e6:.1f} M parameters")
    train_rows, validation_rows = (
        Lines(decoder, labels, read_split(path), longest=longest) for path in (TRAIN, VALIDATION)
    )
    trained = fine_tune(decoder, train=train_rows, validation=validation_rows,
                        training=config.training, hardware=params.hardware,
                        seed=params.seed)  # fmt: skip
    gc.collect()  # the optimizer's states: training has tied them to themselves
    known = Seen(chain(logit_cache.stored_texts(TRAIN), logit_cache.stored_texts(UNLABELLED)))
    written = list(write(decoder, labels, known, config, hardware=params.hardware,
                         longest=longest, seed=params.seed))  # fmt: skip
    asked = config.texts * len(labels)
    say(f"teach: {len(written)} texts written, {asked - len(written)} were there or had no end")
    del decoder, train_rows, validation_rows
    gc.collect()
    return written, {**trained, "asked": asked}


@dataclass(frozen=True)
class Teacher:
    """A fine-tuned model with a tokenizer of its own."""

    model: nn.Module
    tokenizer: Tokenizer
    columns: list[int]
    """Where it has the logit of each label."""


def read_teacher(folder: Path, labels: Sequence[str], max_length: int) -> Teacher:
    """Load a checkpoint that knows `labels`, in whatever order.

    Raises:
        DataError: it knows others.
    """
    own = read_labels(folder / "labels.json")
    if sorted(own) != sorted(labels):
        other = sorted(set(own) ^ set(labels))
        raise DataError(
            f"teach.teachers: {folder.name} has {len(own)} labels that are not the {len(labels)} "
            f"of this data set ({other[0]!r} is in one of them alone), expected the same",
            next_command="stillroom compress --set teach.teachers=DIR",
        )
    columns = [own.index(label) for label in labels]
    model = load_checkpoint(folder)
    positions_needed(model, max_length)
    return Teacher(model, read_tokenizer(folder, max_length), columns)


def fine_tune_second(params: Params, labels: Sequence[str]) -> tuple[Teacher, Metrics]:
    """The student's pretrained model as one more teacher, and what it is worth on validation.

    Its checkpoint stays, so that a run that is cut off later does not train it again.

    Raises:
        DataError: it is the model of an earlier run, cut and trained already.
        GateRefused: it is below the floor of the teacher.
    """
    if (SECOND / "surgery.json").exists():
        raise DataError(
            "teach.second.enabled: found true with a distill.student.path to the model of an "
            "earlier run, expected a pretrained model",
            next_command="stillroom compress --set teach.second.enabled=false",
        )
    require_device(params.hardware)
    training = params.teach.second.training
    model = load_pretrained(SECOND, classes=len(labels), dropout=training.dropout,
                            seed=params.seed, key="distill.student")  # fmt: skip
    say("teach: the second teacher is the student's own pretrained model")
    tokenizer, trained = fine_tune_teacher(
        model, SECOND, stage="teach", training=training, hardware=params.hardware,
        max_length=params.data.max_length, seed=params.seed,
    )  # fmt: skip
    teacher = Teacher(model.cpu().eval(), tokenizer, list(range(len(labels))))
    measured = require_floor(
        partial(mean_logits, [teacher]), params.gate.baseline_floor, who="second teacher",
        next_command="stillroom compress --set teach.second.training.epochs=10",
    )  # fmt: skip
    return teacher, {"steps": trained.steps, "validation": measured}


def mean_logits(
    teachers: Sequence[Teacher], texts: Sequence[str], *, half: bool = False
) -> np.ndarray:
    """Mean over the teachers of the logits ``[texts, classes]`` float32.

    You et al. 2017, "Learning from Multiple Teacher Networks", average the softened
    distributions; the mean of logits gives their geometric mean, normalised, at any temperature,
    so that one cache serves all of them.

    Args:
        half: matrix products in bfloat16.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        answers = (logits_of(one.model, one.tokenizer, texts)[:, one.columns] for one in teachers)
        total = next(answers)
        for logits in answers:
            total += logits
    return total / len(teachers)


def sureness(cache: logit_cache.LogitCache, path: Path) -> tuple[float, float]:
    """Share of a split's texts that are answered right, and the mean largest probability."""
    right, confidence, texts = 0, 0.0, 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(logit_cache.BATCH, columns=["text", "label"]):
            logits = cache.rows(cache.find(batch.column("text").to_pylist()))
            right += int((logits.argmax(-1) == batch.column("label").to_numpy()).sum())
            below = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
            confidence += float((1 / below.sum(-1)).sum())
            texts += len(logits)
    return right / texts, confidence / texts


if __name__ == "__main__":
    run("teach", main)
