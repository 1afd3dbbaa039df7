"""From a model in memory to the servable folder that the planner measures: int8, or fp32."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from tasks.hardware import PROFILES
from tasks.problems.classification import Row
from tasks.quantization.export import check_export, export_onnx, write_serving
from tasks.quantization.post_training import quantize


@dataclass(frozen=True)
class Form:
    """What a planned model is measured as."""

    scheme: Literal["dynamic", "none"] = "dynamic"
    per_channel: bool = True
    embeddings: bool = True


def build_bundle(
    model: nn.Module,
    folder: Path,
    config: Form,
    *,
    checkpoint: Path,
    max_length: int,
    profile: str,
    check: Sequence[Row] = (),
) -> float:
    """Write a servable folder; returns the largest difference in logits of the float export.

    Args:
        checkpoint: where tokenizer, labels and config are.
        profile: where its int8 products saturate, weights get 7 bits.
        check: piece ids of texts that the export is compared on; none checks nothing.

    Raises:
        IntegrityError: the export answers other than the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reduced = PROFILES[profile].reduce_range
    difference, target = 0.0, folder / "model.onnx"
    with tempfile.TemporaryDirectory() as room:
        graph = Path(room) / "float.onnx"
        export_onnx(model, graph, max_length=max_length)
        if check:
            pad_id: int = model.config.pad_token_id  # type: ignore[union-attr,assignment]
            difference = check_export(model, graph, check, pad_id=pad_id)
        if config.scheme == "none":
            shutil.copyfile(graph, target)
        else:
            quantize(
                graph,
                target,
                per_channel=config.per_channel,
                embeddings=config.embeddings,
                reduce_range=reduced,
            )
    write_serving(
        checkpoint, folder, max_length=max_length, profile=profile,
        precision="fp32" if config.scheme == "none" else "int8",
        weight_bits=7 if reduced and config.scheme != "none" else 8,
    )  # fmt: skip
    return difference
