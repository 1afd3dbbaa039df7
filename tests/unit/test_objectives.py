"""Distillation losses against values computed by hand and by numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.objectives import distillation_loss, soft_label_loss


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
