"""What a servable folder must be before anyone is answered from it; serving imports this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tasks.release.stages import stages_fault
from tasks.runtimes.interface import NAMES

WHOLE = ("max_length", "pad_id")
TEXTS = ("model", "pad_token", "runtime")
SHORTEST = 3
"""Pieces: a beginning, one of the text, an end."""


def serving_fault(serving: Any) -> str | None:
    """What is wrong with the content of ``serving.json``; None where nothing is."""
    if not isinstance(serving, Mapping):
        return f"found {type(serving).__name__}, expected an object"
    for key in (*WHOLE, *TEXTS):
        kind = int if key in WHOLE else str
        value = serving.get(key)
        if not isinstance(value, kind) or isinstance(value, bool) or value == "":
            return f"{key}: found {value!r}, expected {'a number' if kind is int else 'a text'}"
    if serving["max_length"] < SHORTEST:
        return f"max_length: found {serving['max_length']}, expected at least {SHORTEST}"
    if serving["pad_id"] < 0:
        return f"pad_id: found {serving['pad_id']}, expected 0 or more"
    if serving["runtime"] not in NAMES:
        return f"runtime: found {serving['runtime']!r}, expected one of {', '.join(NAMES)}"
    if serving.get("weight_bits", 8) not in (7, 8):
        return f"weight_bits: found {serving['weight_bits']!r}, expected 7 or 8"
    return stages_fault(serving)


def labels_fault(labels: Any) -> str | None:
    """What is wrong with the content of ``labels.json``; None where nothing is."""
    if not isinstance(labels, list) or not all(isinstance(name, str) and name for name in labels):
        return "found other than a list of names, expected one name for each logit"
    if len(set(labels)) != len(labels):
        twice = next(name for name in labels if labels.count(name) > 1)
        return f"found {twice!r} twice, expected distinct names"
    return None


def logits_fault(logits: np.ndarray, labels: list[str]) -> str | None:
    """What is wrong with the answer to a text that holds every kind of piece; None for nothing."""
    if logits.ndim != 2 or logits.shape[1] != len(labels):
        return f"found logits {logits.shape}, expected {len(labels)} a text as in labels.json"
    if logits.dtype != np.float32:
        return f"found logits of {logits.dtype}, expected float32"
    if not np.isfinite(logits).all():
        return "found logits that are no numbers, expected finite ones"
    return None
