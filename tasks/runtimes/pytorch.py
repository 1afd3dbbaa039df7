"""PyTorch behind the interface of `tasks.runtimes`: any checkpoint of the chain, text in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.modeling.checkpoint import load_checkpoint
from tasks.problems.classification import encode, pad, read_labels, read_tokenizer


class PyTorchRuntime:
    """A checkpoint that answers texts.

    Args:
        folder: the checkpoint.
        max_length: longest text in word pieces.
        threads: of torch, for the whole process.
    """

    def __init__(self, folder: Path, *, max_length: int = 64, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._model = load_checkpoint(folder)
        self._tokenizer = read_tokenizer(folder, max_length)
        self._labels = read_labels(folder / "labels.json")
        self._pad_id: int = self._model.config.pad_token_id

    @torch.inference_mode()
    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Logits ``[batch, classes]`` for ids and mask ``[batch, length]``."""
        ids, mask = torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
        logits: torch.Tensor = self._model(input_ids=ids, attention_mask=mask).logits
        return logits.numpy()

    @torch.inference_mode()
    def predict(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        ids, mask = pad(encode(self._tokenizer, texts), self._pad_id)
        best = self._model(input_ids=ids, attention_mask=mask).logits.argmax(-1)
        return [self._labels[i] for i in best.tolist()]

    def describe(self) -> dict[str, Any]:
        """Name, version and provider, for reports."""
        return {"runtime": "pytorch", "version": torch.__version__, "provider": "CPU"}

    def close(self) -> None:
        """Free the model."""
        del self._model
