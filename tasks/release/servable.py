"""The servable folder and the loader that serving, validation and MLflow share.

    labels.json      class names in the order of the logits
    model.onnx       input_ids, attention_mask -> logits
    serving.json     problem, runtime, length limit, padding, hardware profile
    tokenizer.json   read by `tokenizers`

With early exits there are ``model.1.onnx`` and so on, too: `tasks.release.stages`. A bundle has
``manifest.json`` and ``MODEL_CARD.md`` beside these. Loading needs `onnxruntime`, `tokenizers` and
`numpy`; neither torch nor transformers, and another engine only where ``serving.json`` names it
and the machine has it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tasks.errors import IntegrityError, UnavailableError
from tasks.files import file_sha256, write_json
from tasks.release.soundness import labels_fault, logits_fault, serving_fault
from tasks.release.stages import Staged, read_stage_files, stage_files
from tasks.runtimes.interface import Runtime, load
from tasks.runtimes.onnx import OnnxRuntime

SERVING_FILES = ("labels.json", "model.onnx", "serving.json", "tokenizer.json")
"""Of any servable folder; `serving_files` has those of one."""


@dataclass(frozen=True)
class Prediction:
    """The likeliest label of one text and its softmax score in [0, 1]."""

    label: str
    score: float


class Servable:
    """Text in, label out.

    Args:
        folder: a servable folder or a bundle.
        threads: threads of the engine.

    Raises:
        UnavailableError: a file is missing.
        IntegrityError: a file is unreadable, or labels and logits disagree in number.
    """

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        expected = serving_files(folder)
        for name in expected:
            if not (folder / name).is_file():
                raise UnavailableError(
                    f"{folder / name}: missing, expected the files {', '.join(expected)}",
                    next_command="stillroom status",
                )
        try:
            self.labels: list[str] = json.loads((folder / "labels.json").read_text("utf-8"))
            self.serving: dict[str, Any] = json.loads((folder / "serving.json").read_text("utf-8"))
            self._require(folder / "labels.json", labels_fault(self.labels))
            self._require(folder / "serving.json", serving_fault(self.serving))
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._runtime = self._open(folder, threads)
            self._tokenizer.enable_truncation(self.serving["max_length"])
            self._tokenizer.enable_padding(
                pad_id=self.serving["pad_id"], pad_token=self.serving["pad_token"]
            )
            found = list(self.every_exit(*self._probe()))
        except IntegrityError:
            raise
        except Exception as error:
            raise IntegrityError(
                f"{folder}: cannot be loaded ({type(error).__name__}: {error})",
                next_command="stillroom rollback --reason 'bundle does not load'",
            ) from error
        for logits in found:
            self._require(folder, logits_fault(logits, self.labels))

    def _open(self, folder: Path, threads: int) -> Runtime:
        """The engine; ONNX Runtime's for each stage where there are several."""
        bits = self.serving.get("weight_bits", 8)
        if "stages" not in self.serving:
            return load(folder / self.serving["model"], runtime=self.serving["runtime"],
                        threads=threads, weight_bits=bits)  # fmt: skip
        return Staged(
            [OnnxRuntime(folder / name, threads=threads, weight_bits=bits)
             for name in stage_files(self.serving)],
            confidence=self.serving["confidence"],
        )  # fmt: skip

    def _probe(self) -> tuple[np.ndarray, np.ndarray]:
        """The first, the last and the padding piece: a table that is too short for them shows."""
        last = max(self._tokenizer.get_vocab().values())
        ids = np.array([[0, last, self.serving["pad_id"]]], dtype=np.int64)
        return ids, np.array([[1, 1, 0]], dtype=np.int64)

    @staticmethod
    def _require(what: Path, fault: str | None) -> None:
        if fault is not None:
            raise IntegrityError(
                f"{what}: {fault}",
                next_command="stillroom rollback --reason 'bundle is not sound'",
            )

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask, both ``[batch, length]`` int64, padded to the longest text."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        ids = np.array([e.ids for e in encodings], dtype=np.int64)
        mask = np.array([e.attention_mask for e in encodings], dtype=np.int64)
        return ids, mask

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Logits ``[batch, classes]`` float32."""
        return self.run(*self.encode(texts))

    def run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Logits ``[batch, classes]`` of what `encode` gives: the bare engine."""
        return self._runtime.run(ids, mask)

    def depths(self, texts: Sequence[str]) -> np.ndarray:
        """How many stages each answer took, ``[batch]``: 1 for all where there is one."""
        ids, mask = self.encode(texts)
        if isinstance(self._runtime, Staged):
            return self._runtime.answer(ids, mask)[1]
        return np.ones(len(ids), dtype=np.int64)

    def every_exit(self, ids: np.ndarray, mask: np.ndarray) -> Iterator[np.ndarray]:
        """Logits of each stage, one after another, whatever the confidence asked for."""
        if isinstance(self._runtime, Staged):
            return self._runtime.walk(ids, mask)
        return iter([self._runtime.run(ids, mask)])

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """The likeliest label of each text."""
        scores = softmax(self.logits(texts))
        best = scores.argmax(axis=1)
        return [
            Prediction(self.labels[i], float(row[i])) for i, row in zip(best, scores, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """The engine, for reports."""
        return self._runtime.describe()

    def close(self) -> None:
        """Free the engine."""
        self._runtime.close()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise softmax of ``[batch, classes]``, stable for large logits."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def write_servable(
    folder: Path, *, labels: Sequence[str], serving: Mapping[str, Any], tokenizer_json: str
) -> None:
    """Write everything but the graphs."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "labels.json", list(labels))
    write_json(folder / "serving.json", dict(serving))
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")


def serving_files(folder: Path) -> tuple[str, ...]:
    """All that answering needs of a servable folder, as its ``serving.json`` has it, sorted."""
    return tuple(sorted({*SERVING_FILES, *read_stage_files(folder)}))


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of each servable file in a folder, by name."""
    return {name: file_sha256(folder / name) for name in serving_files(folder)}


def artifact_sha256(hashes: Mapping[str, str]) -> str:
    """One hash for a servable folder.

    It is what ``sha256sum labels.json model.onnx serving.json tokenizer.json | sha256sum``
    prints inside the folder, the files of further stages among them in order.
    """
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_bytes(folder: Path) -> int:
    """Size of all servable files together."""
    return sum((folder / name).stat().st_size for name in serving_files(folder))
