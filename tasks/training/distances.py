"""How far a student's states are from the teacher's: one distance for each kind of state.

Each is a mean over the words that both models have, so that no text counts for its padding.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def state_distance(
    student: torch.Tensor, teacher: torch.Tensor, shared: torch.Tensor
) -> torch.Tensor:
    """Squared Euclidean distance of unit vectors, 2 − 2 cos, averaged over the shared words.

    Unit vectors as in Sun et al. 2019, "Patient Knowledge Distillation", L_PT, since the length
    of a hidden state differs between layers and models: the plain error of TinyBERT's L_hidn
    is mostly that of the longest states, here every layer counts alike and the loss lies
    between 0 and 4. Summed over the channels, so that it does not shrink with the width.

    Args:
        student, teacher: ``[batch, words, channels]``.
        shared: bool ``[batch, words]``.
    """
    difference = F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)
    return _mean(difference.square().sum(-1), shared)


def embedding_distance(
    student: torch.Tensor, teacher: torch.Tensor, shared: torch.Tensor
) -> torch.Tensor:
    """Mean squared error over channels and shared words (TinyBERT, L_embd).

    Args:
        student, teacher: ``[batch, words, channels]``.
        shared: bool ``[batch, words]``.
    """
    return _mean((student - teacher).square().mean(-1), shared)


def map_distance(
    student: torch.Tensor, teacher: torch.Tensor, shared: torch.Tensor
) -> torch.Tensor:
    """Squared error of attention maps: summed over the keys, averaged over heads and queries.

    TinyBERT, L_attn, though of probabilities, since scores do not add up to words; summed over
    the keys, so that it does not shrink with the text's length. Not a divergence: dropout
    sets some of the student's probabilities to zero, and the attention that goes to
    separators is missing from a row.

    Args:
        student, teacher: ``[batch, heads, words, words]``.
        shared: bool ``[batch, words]``.
    """
    error = (student - teacher).square() * shared[:, None, None, :]
    return _mean(error.sum(-1).mean(1), shared)


def relation_distance(
    student: torch.Tensor, teacher: torch.Tensor, shared: torch.Tensor, heads: int
) -> torch.Tensor:
    """KL(teacher ‖ student) of self-relations, averaged over relation heads and words.

    A relation is the softmax of the scaled dot products of one projection (queries, keys or
    values) with itself, its channels split anew into `heads` (Wang et al. 2021, "MiniLMv2",
    equations 3 to 5). Widths may differ, head counts may, too.

    Args:
        student, teacher: ``[batch, words, channels]``, widths divisible by `heads`.
        shared: bool ``[batch, words]``.
    """
    log_student, log_teacher = (_log_relation(x, shared, heads) for x in (student, teacher))
    divergence = (log_teacher.exp() * (log_teacher - log_student)).masked_fill(
        ~shared[:, None, None, :], 0.0
    )
    return _mean(divergence.sum(-1).mean(1), shared)


def _log_relation(vectors: torch.Tensor, shared: torch.Tensor, heads: int) -> torch.Tensor:
    """Log-probabilities ``[batch, heads, words, words]``; those of words not shared are void."""
    split = vectors.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / math.sqrt(split.shape[-1])
    absent = ~shared[:, None, None, :]
    scores = scores.masked_fill(absent, torch.finfo(scores.dtype).min)
    return F.log_softmax(scores, dim=-1).masked_fill(absent, 0.0)


def _mean(values: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Over the shared words of the batch; 0 if there are none."""
    return (values * shared).sum() / shared.sum().clamp(min=1)
