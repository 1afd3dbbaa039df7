"""The teacher's part in training: what a student's batch is worth.

The teacher's logits are read from the cache that `teach` wrote. Its hidden and attention
states are not cached (9,000 rows of a base model's are 2 GB): if a term over them has a
weight, the teacher runs in the training step, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback

from tasks import schema
from tasks.modeling.checkpoint import load_checkpoint
from tasks.paths import TEACHER_LOGITS, TRAIN, VALIDATION
from tasks.problems.classification import encode, pad, read_class_indices, read_tokenizer
from tasks.pruning.sparsity import KeepZeros
from tasks.training.alignment import word_ids
from tasks.training.logit_cache import LogitCache, asked_texts
from tasks.training.objectives import NO_LABEL, distillation_loss, linear_schedule
from tasks.training.states import StateMatching, forward_kwargs, needs_teacher
from tasks.training.trainer import Objective, Rows, Trained, read_rows, train

NOTHING = Trained(0, 0, [])


def distil(
    student: nn.Module,
    config: schema.Distillation,
    training: schema.Training,
    *,
    stage: str,
    tokenizer: Tokenizer,
    teacher: Path,
    logits: Path,
    hardware: schema.Hardware,
    max_length: int,
    seed: int,
    callbacks: Sequence[TrainerCallback] = (),
    part: str = "",
    before: Trained = NOTHING,
) -> Trained:
    """Train a student in place on the training texts and on what else the teacher was asked.

    What is zero in its matrices when it begins stays zero: a sparse model stays sparse.

    Args:
        teacher: a checkpoint, read only if a term over states has a weight.
        logits: what it answered.
        before: an earlier run of the stage, whose curve this one continues.
    """
    torch.manual_seed(seed)  # of what the objective learns along
    ids = encode(tokenizer, asked_texts(TRAIN, TEACHER_LOGITS))
    known = read_class_indices(TRAIN)
    labels = np.concatenate([known, np.full(len(ids) - len(known), NO_LABEL)])
    objective = Distillation(
        config, lambda: asked_texts(TRAIN, TEACHER_LOGITS), LogitCache(logits), student=student,
        tokenizer=tokenizer, teacher=teacher, max_length=max_length,
    )  # fmt: skip
    try:
        trained = train(
            student,
            stage=stage,
            rows=Rows(ids, labels, objective),
            validation=read_rows(VALIDATION, tokenizer),
            training=training,
            hardware=hardware,
            seed=seed,
            callbacks=[KeepZeros(), *callbacks],
            part=part,
            curve=before.curve,
        )
        student.cpu()  # a GPU trains; what follows measures and cuts beside its data
        return trained
    finally:
        objective.close()


class Distillation(Objective):
    """Towards the teacher's logits and, where params say so, its states.

    Args:
        config: of ``distill`` or of ``finetune``.
        texts: gives the training texts, in the order of the rows. They are kept, as one array of
            bytes, only where a term over states has the teacher read them again.
        cache: the teacher's logits for them.
        student: what is trained; read for its sizes.
        tokenizer: the student's.
        teacher: its checkpoint.
        max_length: pieces of a text.
    """

    def __init__(
        self,
        config: schema.Distillation,
        texts: Callable[[], Iterable[str]],
        cache: LogitCache,
        *,
        student: nn.Module,
        tokenizer: Tokenizer,
        teacher: Path,
        max_length: int,
    ) -> None:
        super().__init__()
        self._config, self._cache = config, cache
        self._rows = cache.find(texts())
        self._states: StatesOfTeacher | None = None
        if needs_teacher(config):
            self._texts = pa.array(texts(), pa.large_string())
            model = load_checkpoint(teacher)
            self._states = StatesOfTeacher(model, read_tokenizer(teacher, max_length), tokenizer)
            self.matching = StateMatching(student, model, config)

    def row(self, index: int) -> dict[str, Any]:
        found = {"teacher_row": int(self._rows[index])}
        return found if self._states is None else {**found, "text": self._texts[index].as_py()}

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "teacher_row" not in rows[0]:  # validation
            return {}
        where = np.array([row["teacher_row"] for row in rows])
        batch = {"teacher_logits": torch.from_numpy(self._cache.rows(where))}
        if self._states is not None:
            batch |= self._states.collate([row["text"] for row in rows])
        return batch

    def forward(
        self, model: nn.Module, batch: dict[str, torch.Tensor], progress: float
    ) -> tuple[torch.Tensor, Any]:
        config = self._config
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        wanted = {} if self._states is None else forward_kwargs(config)
        output = model(**inputs, **wanted)
        loss = distillation_loss(
            output.logits,
            batch["teacher_logits"],
            batch["labels"],
            temperature=linear_schedule(config.temperature, config.temperature_end, progress),
            alpha=linear_schedule(config.alpha, config.alpha_end, progress),
            form=config.logits,
        )
        if self._states is not None:
            teacher = self._states.run(batch, wanted)
            loss = loss + self.matching(
                output, teacher, batch["student_words"], batch["teacher_words"], progress
            )
        return loss, output

    def close(self) -> None:
        """Take the hooks off the student."""
        if self._states is not None:
            self.matching.close()


@dataclass(frozen=True)
class StatesOfTeacher:
    """The teacher in the step, and what aligns its pieces with the student's."""

    model: nn.Module
    tokenizer: Tokenizer
    student_tokenizer: Tokenizer

    def collate(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The teacher's pieces, and the word of every piece on both sides (-1: none)."""
        theirs = self.tokenizer.encode_batch_fast(list(texts))
        ids, mask = pad([e.ids for e in theirs], self.model.config.pad_token_id)  # type: ignore[union-attr,arg-type]
        return {
            "teacher_input_ids": ids,
            "teacher_attention_mask": mask,
            "teacher_words": _words(self.tokenizer, texts),
            "student_words": _words(self.student_tokenizer, texts),
        }

    @torch.no_grad()
    def run(self, batch: dict[str, torch.Tensor], wanted: dict[str, Any]) -> Any:
        """The teacher's output for a batch, on the batch's device."""
        ids, mask = batch["teacher_input_ids"], batch["teacher_attention_mask"]
        self.model.to(ids.device)
        return self.model(input_ids=ids, attention_mask=mask, **wanted)


def _words(tokenizer: Tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """The word of each piece ``[texts, longest]``, -1 where there is none."""
    encodings = tokenizer.encode_batch(list(texts))
    rows = [torch.tensor(word_ids(t, e)) for t, e in zip(texts, encodings, strict=True)]
    return pad_sequence(rows, batch_first=True, padding_value=-1)
