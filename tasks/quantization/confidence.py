"""Make a score of 0.9 mean that nine answers in ten are right."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from tasks.modeling.architecture import architecture_of

LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures that are looked at."""
EDGE = 1.01
"""A temperature within this factor of an end is no minimum."""


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature at which softmax(logits / temperature) has the least cross-entropy.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2. It changes no
    answer. The loss is convex in 1 / temperature, so its minimum is the only one. 1 where there is
    none between `LOWEST` and `HIGHEST`: of texts that are all answered rightly, the loss falls for
    ever, and that says nothing of how sure to be of others.

    Args:
        logits: ``[texts, classes]``, of texts that the model was not trained on.
        labels: ``[texts]`` class indices.
    """
    rows = torch.from_numpy(np.asarray(logits, dtype=np.float64))
    right = torch.from_numpy(np.asarray(labels))

    def loss(log_scale: float) -> float:
        return float(nn.functional.cross_entropy(rows * math.exp(log_scale), right))

    if (rows.argmax(dim=1) == right).all():
        return 1.0
    bounds = (-math.log(HIGHEST), -math.log(LOWEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    temperature = math.exp(-float(found.x))
    return temperature if LOWEST * EDGE < temperature < HIGHEST / EDGE else 1.0


@torch.no_grad()
def fold_temperature(model: nn.Module, temperature: float) -> None:
    """Divide all logits by `temperature`, in place, by dividing the projection that makes them."""
    last = model.get_submodule(architecture_of(model).head[-1])
    for parameter in last.parameters():
        parameter.div_(temperature)
