"""The teacher's part in a training step, on real models and a real cache of logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tasks.modeling.checkpoint import clone, load_checkpoint
from tasks.modeling.surgery import keep_layers
from tasks.params import overlay, parse, read_yaml
from tasks.problems.classification import encode, logits_of, pad, read_tokenizer
from tasks.schema import Distill
from tasks.training import logit_cache
from tasks.training.distillation import Distillation
from tasks.training.objectives import NO_LABEL, distillation_loss, soft_label_loss
from tests.unit.test_student import checkpoint  # noqa: F401

RAW = read_yaml(Path(__file__).resolve().parents[2] / "params.yaml")
TEXTS = ["w7 w8", "w9 w10 w11 w12", "w3 w3 w20"]
LABELS = torch.tensor([0, 4, 2])


def settings(**changes: Any) -> Distill:
    return parse(overlay(RAW, {"distill": {"layers": [0, 2], **changes}})).distill


class Bench:
    """A student of two of the teacher's three layers, the teacher's answers, and a batch."""

    def __init__(self, teacher: Path, room: Path, config: Distill) -> None:
        model = load_checkpoint(teacher)
        self.tokenizer: Tokenizer = read_tokenizer(teacher, 16)
        self.logits = logits_of(model, self.tokenizer, TEXTS).astype(np.float16)
        logit_cache.write(room, TEXTS, 5, lambda texts: logits_of(model, self.tokenizer, texts))
        self.student = load_checkpoint(teacher)
        keep_layers(self.student, config.layers)
        torch.manual_seed(1)
        for parameter in self.student.parameters():  # its embeddings would be the teacher's own
            parameter.data += 0.1 * torch.randn_like(parameter)
        self.objective = Distillation(
            config, lambda: TEXTS, logit_cache.LogitCache(room), student=self.student,
            tokenizer=self.tokenizer, teacher=teacher, max_length=16,
        )  # fmt: skip

    def batch(self, labels: torch.Tensor = LABELS) -> dict[str, torch.Tensor]:
        ids, mask = pad(encode(self.tokenizer, TEXTS), self.student.config.pad_token_id)
        rows = [self.objective.row(index) for index in range(len(TEXTS))]
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {**batch, **self.objective.collate(rows)}


@pytest.fixture
def bench(checkpoint: Path, tmp_path: Path) -> Any:  # noqa: F811
    return lambda **changes: Bench(checkpoint, tmp_path / "logits", settings(**changes))


def test_logits_alone(bench: Any) -> None:
    made = bench(temperature=3.0, alpha=0.3)
    loss, output = made.objective(made.student, made.batch(), 0.0)
    teacher = torch.from_numpy(made.logits).float()
    expected = distillation_loss(output.logits, teacher, LABELS, temperature=3.0, alpha=0.3)
    torch.testing.assert_close(loss, expected, atol=2e-3, rtol=1e-3)
    assert not list(made.objective.parameters())
    assert "text" not in made.objective.row(0), "no text is carried where no state is matched"


def test_schedules_move_with_the_steps(bench: Any) -> None:
    made = bench(temperature=2.0, temperature_end=6.0, alpha=0.0, alpha_end=None)
    batch = made.batch()
    for progress, temperature in ((0.0, 2.0), (0.5, 4.0), (1.0, 6.0)):
        loss, output = made.objective(made.student, batch, progress)
        expected = soft_label_loss(output.logits, batch["teacher_logits"], temperature)
        torch.testing.assert_close(loss, expected)


def test_texts_without_a_label_count_for_the_teachers_part_alone(bench: Any) -> None:
    made = bench(alpha=0.5)
    batch = made.batch(torch.full((3,), NO_LABEL))
    loss, output = made.objective(made.student, batch, 0.0)
    soft = soft_label_loss(output.logits, batch["teacher_logits"], 4.0)
    torch.testing.assert_close(loss, 0.5 * soft)


@pytest.mark.parametrize(
    "term", [{"states": 2.0}, {"attention": 1.0}, {"attention": 1.0, "attention_form": "relations"},
             {"embeddings": 1.0}, {"contrastive": 1.0}],
)  # fmt: skip
def test_states_are_matched_with_the_teacher_in_the_step(bench: Any, term: Any) -> None:
    plain, made = bench(), bench(**term)
    batch = made.batch()
    loss, _ = made.objective(made.student.train(), batch, 0.0)
    without, _ = plain.objective(plain.student.train(), batch, 0.0)
    assert loss.item() > without.item() + 1e-6
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in made.student.parameters())
    theirs = {id(p) for p in made.objective._states.model.parameters()}
    assert not theirs & {id(p) for p in made.objective.parameters()}, "the teacher is not trained"
    assert all(p.grad is None for p in made.objective._states.model.parameters())
    made.objective.close()
    clone(made.student)  # with a hook left on it, copying would fail or copy the teacher


def test_validation_rows_bring_nothing_of_the_teachers(bench: Any) -> None:
    assert bench(states=1.0).objective.collate([{"input_ids": [1], "labels": 0}]) == {}
