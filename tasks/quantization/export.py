"""PyTorch → ONNX, checked number by number before anyone relies on it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from tasks.errors import IntegrityError
from tasks.modeling.architecture import architecture_of, embeddings_of
from tasks.modeling.checkpoint import load_checkpoint, twin
from tasks.modeling.exits import Exits, states_after
from tasks.modeling.vocabulary import pad_token
from tasks.problems.classification import Row, encode, pad, read_labels, read_tokenizer
from tasks.quantization.first_token import first_token_alone
from tasks.release.servable import write_servable
from tasks.runtimes.interface import LONGEST
from tasks.runtimes.onnx import OnnxRuntime

OPSET = 20
MASKED = -10_000.0
"""Added to the attention scores of padding: its weight in a softmax is zero in fp32."""
TOLERANCE = 1e-4
"""Largest difference in logits between a checkpoint and its fp32 export; of logits beyond one, as
a share of the largest."""


class ForServing(nn.Module):
    """Ids and mask in, logits out, with what never changes at serving time folded away.

    There is one segment, so its embedding is added to every position once and for all; the
    mask becomes a bias on the attention scores here, which is one subtraction and one product
    in the graph where the library's own construction is thirty operators. Both are exact.
    Where a token sees those before it only, the bias covers those after it, too; padding has to
    follow the text then, as `tasks.problems.classification.pad` has it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = twin(model).eval()
        self.causal = architecture_of(model).causal
        embeddings = embeddings_of(self.model)
        if hasattr(embeddings, "token_type_embeddings"):
            segment = embeddings.token_type_embeddings.weight.data[0]
            positions = embeddings.position_embeddings
            positions.weight = nn.Parameter(positions.weight.data + segment)
            embeddings.token_type_embeddings = NoSegments()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.answer(input_ids, attention_mask)

    def answer(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, classes]`` at full depth."""
        bias = (1.0 - attention_mask[:, None, None, :].float()) * MASKED
        if self.causal:
            place = torch.arange(attention_mask.shape[1], device=attention_mask.device)
            bias = bias + (place[None, :] > place[:, None]).float() * MASKED
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=bias).logits
        return logits


class WithExits(ForServing):
    """The same, and of each exit its logits and the states ``[batch, length, channels]`` that the
    next layer reads: where `tasks.quantization.stages` cuts the graph."""

    exits: Exits

    def __init__(self, model: nn.Module, exits: Exits) -> None:
        super().__init__(model)
        self.exits = copy.deepcopy(exits).eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        with states_after(self.model, self.exits.layers) as states:
            logits = self.answer(input_ids, attention_mask)
        found = self.exits(self.model, states, attention_mask)
        return (logits, *found, *(states[layer] for layer in self.exits.layers))


class NoSegments(nn.Module):
    """Stands where the segment embedding was."""

    def forward(self, token_type_ids: torch.Tensor) -> float:
        return 0.0


def export_onnx(
    model: nn.Module, path: Path, *, max_length: int, exits: Exits | None = None
) -> None:
    """Write an fp32 ONNX graph with dynamic batch and length, without work that nobody reads.

    Inputs ``input_ids`` and ``attention_mask`` ``[batch, length]`` int64; output ``logits``
    ``[batch, classes]`` float32, and with exits those of `exit_outputs`.
    """
    module = ForServing(model) if exits is None else WithExits(model, exits)
    logits, hidden = exit_outputs(0 if exits is None else len(exits.layers))
    path.parent.mkdir(parents=True, exist_ok=True)
    # two tensors: the exporter takes one that is passed twice for one input
    ids, mask = torch.full((2, 8), 3, dtype=torch.long), torch.ones((2, 8), dtype=torch.long)
    batch = torch.export.Dim("batch", min=1, max=4096)
    length = torch.export.Dim("length", min=2, max=max_length)
    shape = {0: batch, 1: length}
    with quiet():
        program = torch.onnx.export(
            module,
            (ids, mask),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits", *logits, *hidden],
            dynamic_shapes={"input_ids": shape, "attention_mask": shape},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.value_info[:]
    first_token_alone(proto)
    onnx.helper.set_model_props(proto, {LONGEST: str(max_length)})
    onnx.save(proto, path)


def exit_outputs(count: int) -> tuple[list[str], list[str]]:
    """What a graph with exits calls their logits, and the states that are handed on there."""
    return [f"exit_{n}" for n in range(count)], [f"hidden_{n}" for n in range(count)]


def check_export(model: nn.Module, path: Path, ids: Sequence[Row], *, pad_id: int) -> float:
    """Largest absolute difference in logits over texts, at batch 1 and padded together.

    Raises:
        IntegrityError: it exceeds `TOLERANCE`: the export "succeeded" and is wrong.
    """
    runtime = OnnxRuntime(path)
    worst = largest = 0.0
    for group in [*([row] for row in ids[:4]), list(ids)]:
        batch, mask = pad(group, pad_id)
        with torch.inference_mode():
            expected = model(input_ids=batch, attention_mask=mask).logits.numpy()
        found = runtime.run(batch.numpy(), mask.numpy())
        worst = float(np.maximum(worst, np.abs(found - expected).max()))  # NaN stays NaN
        largest = max(largest, float(np.abs(expected).max()))
    runtime.close()
    require_close(worst, largest, "logits")
    return worst


def require_close(worst: float, largest: float, what: str) -> None:
    """Refuse an export whose answers are others.

    Args:
        worst: the largest difference.
        largest: the largest logit, without its sign.

    Raises:
        IntegrityError: the difference exceeds `TOLERANCE`, or is no number.
    """
    if not worst <= TOLERANCE * max(largest, 1.0):
        raise IntegrityError(
            f"export: {what} differ by {worst:.2g} from the checkpoint, expected at most "
            f"{TOLERANCE * max(largest, 1.0):.2g}",
            next_command="dvc repro --force quantize",
        )


def export_servable(
    checkpoint: Path, folder: Path, *, max_length: int, profile: str, sample_texts: Sequence[str]
) -> float:
    """Export a checkpoint as an fp32 servable folder; returns the largest logit difference."""
    model = load_checkpoint(checkpoint)
    export_onnx(model, folder / "model.onnx", max_length=max_length)
    write_serving(checkpoint, folder, max_length=max_length, profile=profile, precision="fp32")
    ids = encode(read_tokenizer(checkpoint, max_length), sample_texts)
    return check_export(model, folder / "model.onnx", ids, pad_id=model.config.pad_token_id)


def write_serving(
    checkpoint: Path,
    folder: Path,
    *,
    max_length: int,
    profile: str,
    precision: str,
    weight_bits: int = 8,
    runtime: str = "onnxruntime",
) -> None:
    """Write tokenizer, labels and ``serving.json`` beside a graph.

    Args:
        weight_bits: how far int8 weights reach: `tasks.runtimes.onnx.OnnxRuntime`.
        runtime: the engine that answers: one of `tasks.runtimes.interface.NAMES`.
    """
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    tokenizer_json = (checkpoint / "tokenizer.json").read_text("utf-8")
    serving = {
        "format": 1,
        "problem": "classification",
        "runtime": runtime,
        "model": "model.onnx",
        "precision": precision,
        "weight_bits": weight_bits,
        "profile": profile,
        "max_length": max_length,
        "pad_id": config["pad_token_id"],
        "pad_token": pad_token(tokenizer_json, config["pad_token_id"]),
    }
    write_servable(
        folder,
        labels=read_labels(checkpoint / "labels.json"),
        serving=serving,
        tokenizer_json=tokenizer_json,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter prints its steps and warns of what it handles itself."""
    for name in ("torch.onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("ONNXSCRIPT_VERBOSE", "0")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
