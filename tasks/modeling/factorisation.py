"""A word table as the product of two: pieces × rank, rank × channels."""

from __future__ import annotations

import torch
from torch import nn

PIECES = 4096
"""Rows of a table that are in double precision at a time."""


class FactorisedEmbedding(nn.Module):
    """Piece ids ``[...]`` → vectors ``[..., channels]``, through a narrow table.

    ALBERT's factorised parameterisation (Lan et al. 2020, section 3.1): V × H parameters become
    V × r + r × H.

    Args:
        table: ``[pieces, rank]``.
        project: ``[channels, rank]``, the weight of a linear layer without bias.
        padding: the piece whose row gets no gradient.
    """

    def __init__(self, table: torch.Tensor, project: torch.Tensor, *, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table, freeze=False, padding_idx=padding)
        self.project = nn.Linear(project.shape[1], project.shape[0], bias=False, device="meta")
        self.project.weight = nn.Parameter(project)

    @property
    def padding_idx(self) -> int | None:
        """The piece whose row gets no gradient."""
        return self.table.padding_idx

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.project(self.table(ids))
        return vectors


def vectors(words: nn.Module) -> torch.Tensor:
    """All word vectors ``[pieces, channels]`` of a table, factorised or not, without gradient."""
    if isinstance(words, FactorisedEmbedding):
        return words.table.weight.detach() @ words.project.weight.detach().T
    assert isinstance(words, nn.Embedding)
    return words.weight.detach()


def factorised(words: nn.Module, rank: int) -> FactorisedEmbedding:
    """The nearest table of rank `rank` in the Frobenius norm (Eckart and Young 1936), as factors.

    With W = U S Vᵀ cut to the `rank` largest singular values, the table is U √S and the
    projection √S Vᵀ, so that both have entries of like size: one learning rate serves them when
    they are trained on, and int8 costs less than with all of S on either side. V comes from the
    eigenvectors of WᵀW in double precision: its size is the number of channels, not of pieces.
    """
    parts = vectors(words).split(PIECES)
    width = parts[0].shape[1]
    square = torch.zeros(width, width, dtype=torch.float64, device=parts[0].device)
    for part in parts:
        square += part.double().T @ part.double()
    values, vectors_of = torch.linalg.eigh(square)
    right = vectors_of.flip(1)[:, :rank]  # largest first
    # ‖W v‖² is v's eigenvalue; a table of lower rank leaves zeros
    root = values.flip(0)[:rank].clamp_min(0.0).sqrt().sqrt().clamp_min(1e-12)
    left = torch.cat([(part.double() @ (right / root)).float() for part in parts])
    padding: int | None = words.padding_idx  # type: ignore[assignment]
    return FactorisedEmbedding(left, (right * root).float().contiguous(), padding=padding)
