"""Several trained students, one model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def average(models: Sequence[PreTrainedModel]) -> PreTrainedModel:
    """The first model with the mean of all models' weights: a uniform soup.

    They must have begun at the same weights; then their mean lies in one basin with them
    (Wortsman et al. 2022, "Model soups", section 2).
    """
    first, *others = models
    states = [model.state_dict() for model in others]
    for name, tensor in first.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_((tensor + sum(s[name] for s in states)) / len(models))
    return first
