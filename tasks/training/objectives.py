"""What a student is trained towards."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def soft_label_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> torch.Tensor:
    """KL(teacher ‖ student) of distributions softened by `temperature`, times its square.

    The square keeps the gradient's size independent of the temperature (Hinton, Vinyals
    and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2).

    Args:
        student_logits, teacher_logits: ``[batch, classes]``.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float,
    alpha: float,
) -> torch.Tensor:
    """``alpha`` × cross-entropy with the labels + (1 − ``alpha``) × `soft_label_loss`.

    Args:
        student_logits, teacher_logits: ``[batch, classes]``.
        labels: ``[batch]`` class indices.
    """
    soft = soft_label_loss(student_logits, teacher_logits, temperature)
    if alpha == 0.0:
        return soft
    return alpha * F.cross_entropy(student_logits.float(), labels) + (1 - alpha) * soft
