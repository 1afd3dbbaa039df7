"""Distillation losses against values computed by hand and by numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tasks.training.objectives import (
    NO_LABEL,
    distillation_loss,
    linear_schedule,
    logit_loss,
    soft_label_loss,
)


def test_soft_labels_by_hand() -> None:
    # teacher (2/3, 1/3), student (1/2, 1/2) at T = 1: KL = 2/3 ln(4/3) + 1/3 ln(2/3)
    teacher = torch.tensor([[math.log(2.0), 0.0]])
    student = torch.tensor([[0.0, 0.0]])
    expected = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert soft_label_loss(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)
    # logits scaled by T give the same softened distributions: the loss is T² times as large
    assert soft_label_loss(3 * student, 3 * teacher, 3.0).item() == pytest.approx(9 * expected)


def test_batches_are_averaged_not_summed_over_classes() -> None:
    teacher = torch.tensor([[math.log(2.0), 0.0], [0.0, 0.0]])
    student = torch.zeros(2, 2)
    one = soft_label_loss(student[:1], teacher[:1], 1.0).item()
    assert soft_label_loss(student, teacher, 1.0).item() == pytest.approx(one / 2)


@given(
    st.lists(st.floats(-8, 8), min_size=3, max_size=3),
    st.lists(st.floats(-8, 8), min_size=3, max_size=3),
    st.floats(0.5, 10),
    st.floats(0, 1),
)
def test_the_mix_against_numpy(
    student: list[float], teacher: list[float], temperature: float, alpha: float
) -> None:
    def softmax(values: list[float], t: float) -> np.ndarray:
        e = np.exp(np.array(values) / t - max(values) / t)
        return e / e.sum()

    p, q = softmax(teacher, temperature), softmax(student, temperature)
    kl = float((p * np.log(p / q)).sum()) * temperature**2
    cross_entropy = -math.log(softmax(student, 1.0)[1])
    found = distillation_loss(
        torch.tensor([student]), torch.tensor([teacher]), torch.tensor([1]),
        temperature=temperature, alpha=alpha,
    ).item()  # fmt: skip
    assert found == pytest.approx(alpha * cross_entropy + (1 - alpha) * kl, rel=1e-3, abs=1e-4)


def test_a_student_that_equals_its_teacher_has_no_gradient() -> None:
    logits = torch.randn(4, 7, requires_grad=True)
    soft_label_loss(logits, logits.detach().clone(), 4.0).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_logit_error_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    teacher = torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    assert logit_loss(student, teacher).item() == pytest.approx((1 + 4 + 0 + 0) / 4)


def test_soft_labels_tend_to_half_the_logit_error_as_the_temperature_grows() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64)
    student, teacher = (x - x.mean(-1, keepdim=True) for x in (student, teacher))
    expected = logit_loss(student, teacher).item() / 2
    found = [soft_label_loss(student, teacher, t).item() for t in (1.0, 8.0, 64.0)]
    errors = [abs(value - expected) for value in found]
    assert errors[0] > errors[1] > errors[2]
    assert found[2] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("form", ["kl", "mse"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_text_without_a_label_brings_the_teachers_part_alone(form: str, alpha: float) -> None:
    student, teacher = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([2, NO_LABEL, 0, NO_LABEL, NO_LABEL])
    rows = []
    for row in range(5):
        one = slice(row, row + 1)
        soft = (
            soft_label_loss(student[one], teacher[one], 3.0)
            if form == "kl"
            else (student[row] - teacher[row]).square().mean()
        )
        label = int(labels[row])
        hard = 0.0 if label == NO_LABEL else -F.log_softmax(student[row], dim=-1)[label].item()
        rows.append(alpha * hard + (1 - alpha) * soft.item())
    found = distillation_loss(
        student, teacher, labels, temperature=3.0, alpha=alpha, form=form  # type: ignore[arg-type]
    )  # fmt: skip
    assert found.item() == pytest.approx(sum(rows) / 5, rel=1e-5)


def test_a_batch_without_any_label_has_a_finite_loss_and_gradient() -> None:
    student = torch.randn(3, 4, requires_grad=True)
    teacher = torch.randn(3, 4)
    labels = torch.full((3,), NO_LABEL)
    loss = distillation_loss(student, teacher, labels, temperature=2.0, alpha=0.25)
    loss.backward()
    assert loss.item() == pytest.approx(0.75 * soft_label_loss(student, teacher, 2.0).item())
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("rows", [1, 7, 32])
def test_labelled_batches_give_the_plain_formula_bit_for_bit(rows: int) -> None:
    student = torch.randn(rows, 11, requires_grad=True)
    teacher, labels = torch.randn(rows, 11), torch.randint(0, 11, (rows,))
    found = distillation_loss(student, teacher, labels, temperature=4.0, alpha=0.3)
    plain = 0.3 * F.cross_entropy(student, labels) + 0.7 * soft_label_loss(student, teacher, 4.0)
    assert found.item() == plain.item()
    (gradient,) = torch.autograd.grad(found, student)
    (expected,) = torch.autograd.grad(plain, student)
    assert torch.equal(gradient, expected)


def test_schedules_run_linearly_and_stay_within_their_ends() -> None:
    assert [linear_schedule(8.0, 2.0, p) for p in (0.0, 0.25, 1.0)] == [8.0, 6.5, 2.0]
    assert linear_schedule(8.0, 2.0, 1.2) == 2.0
    assert linear_schedule(8.0, 2.0, -0.1) == 8.0
    assert linear_schedule(0.5, None, 0.7) == 0.5
    assert linear_schedule(0.5, 0.0, 1.0) == 0.0  # an end of zero is an end
