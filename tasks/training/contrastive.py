"""Know the teacher's vector of a text among those of the batch's other texts."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

TEMPERATURE = 0.1
CHANNELS = 128


class TextContrast(nn.Module):
    """`info_nce` of text vectors after a learned projection of each side to 128 channels.

    Both sides are projected, as in Tian, Krishnan and Isola 2020, "Contrastive Representation
    Distillation" (g^S and g^T there): what is compared need not be all that the teacher's
    vector holds. The negatives keep the projections from collapsing.
    """

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.student = nn.Linear(student_width, CHANNELS, bias=False)
        self.teacher = nn.Linear(teacher_width, CHANNELS, bias=False)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Scalar loss for vectors ``[batch, channels]`` of the same texts."""
        return info_nce(self.student(student), self.teacher(teacher), TEMPERATURE)


def info_nce(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy of finding a text's own counterpart by cosine similarity / `temperature`.

    van den Oord, Li and Vinyals 2018, "Representation Learning with Contrastive Predictive
    Coding", equation 4, in both directions, averaged: the teacher's vector among the
    teacher's, and the student's among the student's, since neither side is the anchor and one
    matrix of similarities serves both. All other texts are negatives, those of the same
    class, too. A batch of one has none, and no loss.

    Args:
        student, teacher: ``[batch, channels]``, row by row of the same text.
    """
    similarity = F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).T / temperature
    own = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2
