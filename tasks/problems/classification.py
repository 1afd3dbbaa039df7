"""Text classification: how texts become batches and logits become answers."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from torch import nn

from tasks.modeling.vocabulary import encodings, plain_tokenizer

Row = Sequence[int] | np.ndarray
"""Piece ids of one text."""


@dataclass(frozen=True)
class Split:
    """Texts and class indices of one split."""

    texts: list[str]
    labels: np.ndarray


def read_split(path: Path, rows: int | None = None) -> Split:
    """Read a prepared split, or its first rows."""
    table = pq.read_table(path)
    table = table if rows is None else table.slice(0, rows)
    return Split(table["text"].to_pylist(), table["label"].to_numpy().astype(np.int64))


def read_class_indices(path: Path) -> np.ndarray:
    """Those of a prepared split, ``[rows]`` int64, without its texts."""
    return pq.read_table(path, columns=["label"])["label"].to_numpy().astype(np.int64)


def read_labels(path: Path) -> list[str]:
    """Class names in the order of the logits."""
    return list(json.loads(path.read_text("utf-8")))


def read_tokenizer(checkpoint: Path, max_length: int) -> Tokenizer:
    """The tokenizer of a checkpoint, truncating at `max_length` pieces."""
    return plain_tokenizer(
        (checkpoint / "tokenizer.json").read_text("utf-8"), max_length=max_length
    )


class Pieces(Sequence[np.ndarray]):
    """Piece ids of many texts, four bytes an id; each text's are a view ``[length]`` int32."""

    def __init__(self, ids: np.ndarray, starts: np.ndarray) -> None:
        self._ids, self._starts = ids, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        where = range(len(self))[index]
        if isinstance(where, range):
            return [self[position] for position in where]
        return self._ids[self._starts[where] : self._starts[where + 1]]


def encode(tokenizer: Tokenizer, texts: Iterable[str]) -> Pieces:
    """Piece ids of each text, special ones included."""
    ids, starts = array("i"), array("q", [0])
    for encoding in encodings(tokenizer, texts):
        ids.extend(encoding.ids)
        starts.append(len(ids))
    return Pieces(np.frombuffer(ids, np.int32), np.frombuffer(starts, np.int64))


def pad(ids: Sequence[Row], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both ``[batch, longest]`` int64."""
    longest = max(len(row) for row in ids)
    padded = torch.full((len(ids), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(ids), longest), dtype=torch.long)
    for row, (values, flags) in zip(ids, zip(padded, mask, strict=True), strict=True):
        values[: len(row)] = torch.as_tensor(row)
        flags[: len(row)] = 1
    return padded, mask


def batches(
    ids: Sequence[Row], pad_id: int, size: int = 64
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Batches of texts of like length: their positions, ids and mask."""
    order = np.argsort([len(row) for row in ids], kind="stable")
    for start in range(0, len(order), size):
        where = order[start : start + size]
        yield where, *pad([ids[i] for i in where], pad_id)


@torch.inference_mode()
def logits_of(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], size: int = 64
) -> np.ndarray:
    """Logits ``[texts, classes]`` float32, in the order of the texts."""
    model.eval()
    device = next(model.parameters()).device
    out: np.ndarray | None = None
    ids = encode(tokenizer, texts)
    for where, batch, mask in batches(ids, model.config.pad_token_id, size):  # type: ignore[union-attr,arg-type]
        logits = model(input_ids=batch.to(device), attention_mask=mask.to(device)).logits
        if out is None:
            out = np.empty((len(ids), logits.shape[1]), dtype=np.float32)
        out[where] = logits.float().cpu().numpy()
    assert out is not None
    return out
