"""From a model in memory to the servable folder: exported, checked, quantised."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from tasks.quantization.export import check_export, export_onnx, write_serving
from tasks.quantization.post_training import quantize
from tasks.schema import Quantize


def build_bundle(
    model: nn.Module,
    folder: Path,
    config: Quantize,
    *,
    checkpoint: Path,
    max_length: int,
    profile: str,
    check: Sequence[list[int]] = (),
) -> float:
    """Write a servable folder; returns the largest difference in logits of the float export.

    Args:
        checkpoint: where tokenizer, labels and config are.
        profile: `cpu-avx2` gets 7-bit weights, since its int8 products saturate.
        check: piece ids of texts that the export is compared on; none checks nothing.

    Raises:
        IntegrityError: the export answers other than the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
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
                reduce_range=profile == "cpu-avx2",
            )
    write_serving(
        checkpoint, folder, max_length=max_length, profile=profile, precision=precision(config)
    )
    return difference


def precision(config: Quantize) -> str:
    """Of the weights, as ``serving.json`` and the report name it."""
    return "fp32" if config.scheme == "none" else "int8"
