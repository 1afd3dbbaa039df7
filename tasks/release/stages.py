"""A model in stages, run one after another until the answer is sure enough.

    runtime = Staged([stage, …], confidence=0.9)
    logits, depths = runtime.answer(ids, mask)

Each stage is a graph whose first output is logits and whose second, but for the last stage's, is
what the next one takes. Of a batch, only the rows that are not sure yet go on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tasks.runtimes.interface import INPUTS

NEVER = 1.0
"""The confidence at which every text goes to the end."""


class Stage(Protocol):
    """A graph behind an engine."""

    def feed(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name, in order, for those of the inputs that the graph takes."""

    def describe(self) -> dict[str, Any]:
        """The engine, for reports."""

    def close(self) -> None:
        """Free it."""


class Staged:
    """Stages behind the interface of `tasks.runtimes`.

    Args:
        stages: in order.
        confidence: the largest softmax probability from which on a row stops, in (0, 1]; at 1
            none stops early.
    """

    def __init__(self, stages: Sequence[Stage], *, confidence: float) -> None:
        self._stages, self._confidence = stages, confidence

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Logits ``[batch, classes]`` float32 of the exit at which each row stopped."""
        return self.answer(input_ids, attention_mask)[0]

    def answer(
        self, input_ids: np.ndarray, attention_mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same, and how many stages each row ran, ``[batch]`` int64."""
        state = {"input_ids": input_ids, "attention_mask": attention_mask}
        left = np.arange(len(input_ids))
        depths = np.full(len(input_ids), len(self._stages))
        answers: np.ndarray | None = None
        for depth, stage in enumerate(self._stages, start=1):
            logits, state = step(stage, state)
            answers = logits.copy() if answers is None else answers
            answers[left] = logits
            if depth == len(self._stages):
                break
            done = sure(logits, self._confidence)
            depths[left[done]] = depth
            left = left[~done]
            if not len(left):
                break
            if done.any():
                state = {name: rows[~done] for name, rows in state.items()}
        assert answers is not None
        return answers, depths

    def walk(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> Iterator[np.ndarray]:
        """Logits ``[batch, classes]`` of every exit, a stage at a time, whatever is sure."""
        state = {"input_ids": input_ids, "attention_mask": attention_mask}
        for stage in self._stages:
            logits, state = step(stage, state)
            yield logits

    def describe(self) -> dict[str, Any]:
        """Engine, number of stages and the confidence asked for, for reports."""
        stages = {"stages": len(self._stages), "confidence": self._confidence}
        return self._stages[0].describe() | stages

    def close(self) -> None:
        """Free all stages."""
        for stage in self._stages:
            stage.close()


def step(stage: Stage, state: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Run one stage; returns its logits and what the next one is fed."""
    (_, logits), *handed = stage.feed(state).items()
    return logits, {name: state[name] for name in INPUTS} | dict(handed)


def sure(logits: np.ndarray, confidence: float) -> np.ndarray:
    """Which rows ``[batch]`` of logits ``[batch, classes]`` stop at an exit."""
    if confidence >= NEVER:  # a softmax in fp32 may well be 1
        return np.zeros(len(logits), dtype=bool)
    return np.asarray(top(logits) >= confidence)


def top(logits: np.ndarray) -> np.ndarray:
    """The largest softmax probability of each row, ``[…, classes]`` → ``[…]``."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(1.0 / shifted.sum(axis=-1))


def stage_names(count: int) -> tuple[str, ...]:
    """The files of so many stages, in order."""
    return ("model.onnx", *(f"model.{n}.onnx" for n in range(1, count)))


def stage_files(serving: Any) -> tuple[str, ...]:
    """The graphs that ``serving.json`` names: one, unless it has stages and they are sound."""
    staged = isinstance(serving, Mapping) and "stages" in serving and not stages_fault(serving)
    return stage_names(len(serving["stages"]) if staged else 1)


def stages_fault(serving: Mapping[str, Any]) -> str | None:
    """What is wrong with the stages of ``serving.json``; None where nothing is, or none are."""
    if "stages" not in serving:
        return "confidence: found one without stages" if "confidence" in serving else None
    named, confidence = serving["stages"], serving.get("confidence")
    if not isinstance(named, list) or len(named) < 2 or named != [*stage_names(len(named))]:
        return f"stages: found {named!r}, expected model.onnx, model.1.onnx and so on"
    if serving.get("runtime") != "onnxruntime":
        return f"runtime: found {serving.get('runtime')!r} with stages, expected onnxruntime"
    if isinstance(confidence, bool) or not isinstance(confidence, int | float):
        return f"confidence: found {confidence!r}, expected a number"
    if not 0.0 < confidence <= 1.0:
        return f"confidence: found {confidence}, expected more than 0 and at most 1"
    return None


def read_stage_files(folder: Path) -> tuple[str, ...]:
    """The graphs of a servable folder; one where ``serving.json`` is missing or unreadable."""
    try:
        return stage_files(json.loads((folder / "serving.json").read_text("utf-8")))
    except (OSError, ValueError):
        return stage_names(1)
