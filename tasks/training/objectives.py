"""What a student is trained towards: the teacher's logits and the labels."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

NO_LABEL = -100
"""In place of a class index: a text that only the teacher has labelled."""


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


def logit_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the logits as they are.

    Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", equation 1; Kim et al. 2021,
    "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
    Distillation". The papers sum over the classes; the mean keeps the weight beside the
    cross-entropy independent of their number. For logits that sum to zero, `soft_label_loss`
    tends to half of it as the temperature grows.

    Args:
        student_logits, teacher_logits: ``[batch, classes]``.
    """
    return F.mse_loss(student_logits.float(), teacher_logits.float())


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float,
    alpha: float,
    form: Literal["kl", "mse"] = "kl",
) -> torch.Tensor:
    """``alpha`` × cross-entropy with the labels + (1 − ``alpha``) × the teacher's part.

    A mean over the texts of the batch, to which a text without a label brings the second
    term alone: the cross-entropy is the mean over the labelled texts times their share. A
    labelled text so weighs the same whatever it is batched with, and a batch without any
    label has a loss.

    Args:
        student_logits, teacher_logits: ``[batch, classes]``.
        labels: ``[batch]`` class indices, `NO_LABEL` where there is none.
        temperature: of `soft_label_loss`; not read with ``mse``.
        form: `soft_label_loss` or `logit_loss`.
    """
    if form == "kl":
        soft = soft_label_loss(student_logits, teacher_logits, temperature)
    else:
        soft = logit_loss(student_logits, teacher_logits)
    if alpha == 0.0:
        return soft
    labelled = int((labels != NO_LABEL).sum())
    if labelled == 0:  # the mean over no rows is not a number
        return (1 - alpha) * soft
    hard = F.cross_entropy(student_logits.float(), labels, ignore_index=NO_LABEL)
    return alpha * (labelled / len(labels)) * hard + (1 - alpha) * soft


def linear_schedule(start: float, end: float | None, progress: float) -> float:
    """The value at `progress`, a share of the steps from 0 to 1; `start` throughout without `end`.

    Beyond either end the value stays.
    """
    if end is None:
        return start
    return start + (end - start) * min(max(progress, 0.0), 1.0)
