"""The training texts that importance is estimated on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from tasks.problems.classification import Split, batches, encode
from tasks.problems.sampling import by_chance

TEXTS_AT_A_TIME = 8
"""So that what a pass leaves in memory is small beside a model of three narrow layers."""


class Calibration:
    """At most `samples` texts of a split, drawn by chance, as often as they are asked for.

    Args:
        model: read for its padding id.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, split: Split, samples: int, seed: int
    ) -> None:
        self._pad_id: int = model.config.pad_token_id
        drawn = by_chance(len(split.texts), samples, seed)
        self._ids = encode(tokenizer, [split.texts[i] for i in drawn])
        self._labels = torch.from_numpy(split.labels[drawn])

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Ids and mask ``[batch, length]``, labels ``[batch]``."""
        for where, ids, mask in batches(self._ids, self._pad_id, TEXTS_AT_A_TIME):
            yield ids, mask, self._labels[torch.from_numpy(where)]
