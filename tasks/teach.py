"""Ask the teacher once: cache its logits for every text that a student will learn from.

    python -m tasks.teach
    dvc repro teach

These are the training texts, unlabelled ones of the user's or of a package, and altered copies of
the training texts. Students read the cache, so the teacher's forward pass is paid once, not once
an epoch. Further teachers are asked the same, and the logits of all averaged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from torch import nn

from tasks.errors import DataError
from tasks.modeling.checkpoint import load_checkpoint
from tasks.modeling.surgery import positions_needed
from tasks.paths import TEACHER, TEACHER_LOGITS, TEACHERS, TRAIN, UNLABELLED
from tasks.problems.augmentation import augment
from tasks.problems.classification import logits_of, read_labels, read_tokenizer
from tasks.processor import native_bf16
from tasks.schema import Params
from tasks.stage import Metrics, run, say
from tasks.training import logit_cache


def main(params: Params) -> Metrics:
    copies = params.teach.augment.copies
    names = json.loads((TEACHERS / "teachers.json").read_text("utf-8"))
    labels = read_labels(TEACHER / "labels.json")
    folders = [TEACHER, *(TEACHERS / name for name in names)]
    teachers = [read_teacher(folder, labels, params.data.max_length) for folder in folders]
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
            augment(originals, params.teach.augment, seed=params.seed),
        ),
        progress=lambda done, total: say(f"teach: {done}/{total} texts"),
    )  # fmt: skip
    accuracy, confidence = sureness(logit_cache.LogitCache(TEACHER_LOGITS), TRAIN)
    say(f"teach: right on {accuracy:.1%} of the training texts, mean confidence {confidence:.3f}")
    augmented = logit_cache.extra_rows(TEACHER_LOGITS) - rows[UNLABELLED]
    return {
        "texts": texts,
        "unlabelled": rows[UNLABELLED],
        "augmented": augmented,
        "dropped_copies": copies * rows[TRAIN] - augmented,
        "teachers": len(teachers),
        "train_accuracy": accuracy,
        "train_confidence": confidence,
    }


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
