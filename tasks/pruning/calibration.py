"""The training texts that importance is estimated on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from tasks.problems.classification import Split, batches, encode


class Calibration:
    """The first `samples` texts of a split, as often as they are asked for.

    Args:
        model: read for its padding id.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, split: Split, samples: int
    ) -> None:
        self._pad_id: int = model.config.pad_token_id
        self._ids = encode(tokenizer, split.texts[:samples])
        self._labels = torch.from_numpy(split.labels[:samples])

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Ids and mask ``[batch, length]``, labels ``[batch]``."""
        for where, ids, mask in batches(self._ids, self._pad_id):
            yield ids, mask, self._labels[torch.from_numpy(where)]
