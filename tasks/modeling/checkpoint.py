"""Open and save any checkpoint of the chain.

config.json        what the library builds before the shapes are applied
surgery.json       the final shapes of each layer and of the whole, and what was done to get there
model.safetensors  weights; they load strictly or not at all
tokenizer.json     labels.json
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from tasks.errors import DataError, IntegrityError
from tasks.modeling.architecture import architecture_of
from tasks.modeling.surgery import (
    LayerShape,
    ModelShape,
    Shapes,
    model_shape_of,
    reshape,
    shapes_of,
)

CHECKPOINT_FILES = ("config.json", "model.safetensors", "surgery.json", "tokenizer.json")
EXITS_FILE = "exits.safetensors"
"""Heads before the last layer, where a checkpoint has them: `tasks.modeling.exits`."""


def load_pretrained(
    folder: Path, *, classes: int, dropout: float, seed: int, key: str = "teacher"
) -> PreTrainedModel:
    """A pretrained encoder under a new classification head.

    Args:
        classes: number of logits.
        dropout: of hidden states and attention probabilities, while training.
        key: the section of params that it comes from, for messages.

    Raises:
        ParamsError: an architecture that `tasks.modeling.architecture` does not know.
        DataError: a weight of the encoder is missing; it would be left random without a word.
            Or there is no padding piece.
    """
    torch.manual_seed(seed)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder)
        config.num_labels = classes
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a head for other classes makes room for a new one
        )
    except Exception as error:  # whatever a broken file makes of the libraries below
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{key}: {folder} cannot be loaded ({type(error).__name__}: {reason}), expected "
            "config.json, model.safetensors and tokenizer.json of one encoder",
            next_command=f"stillroom compress --set {key}.source=package",
        ) from error
    arch = architecture_of(model)
    if config.pad_token_id is None:
        raise DataError(
            f"{key}: {folder / 'config.json'} has no pad_token_id, expected the id of a piece "
            "that fills up short texts and occurs in none",
            next_command=f"stillroom compress --set {key}.source=package",
        )
    if arch.causal:
        model.config.use_cache = False  # a text is read once
    absent = [key for key in found["missing_keys"] if key.startswith(f"{arch.encoder}.")]
    absent = [key for key in absent if ".pooler." not in key]
    absent += [key for key, *_ in found["mismatched_keys"] if key.startswith(f"{arch.encoder}.")]
    if absent:
        raise DataError(
            f"{key}: {folder / 'model.safetensors'} has no {sorted(absent)[0]} "
            f"of its size ({len(absent)} missing), expected all weights of a {config.model_type}",
            next_command=f"stillroom compress --set {key}.source=package",
        )
    require_rows(model, folder, key)
    set_dropout(model, dropout)
    return model


def require_rows(model: PreTrainedModel, folder: Path, key: str) -> None:
    """Refuse a tokenizer that has pieces beyond the model's table.

    Raises:
        DataError: it has.
    """
    rows = len(next(model.get_input_embeddings().parameters()))
    file = folder / "tokenizer.json"
    last = max(Tokenizer.from_file(str(file)).get_vocab().values()) if file.exists() else 0
    if last >= rows:
        raise DataError(
            f"{key}: {file} has a piece with id {last}, and the word table "
            f"{rows} rows, expected a row for each piece",
            next_command=f"stillroom compress --set {key}.source=package",
        )


def load_checkpoint(
    folder: Path, *, dropout: float = 0.0, weights: str = "model.safetensors"
) -> PreTrainedModel:
    """Build the recorded shapes, then load the weights strictly; the model is in eval mode.

    Weights are copied one by one, so that there is no second set of them.

    Raises:
        IntegrityError: weights and shapes do not fit.
    """
    config = AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    try:
        reshape(model, read_shapes(folder), read_model_shape(folder))
        load_weights(model, folder / weights)
    except (RuntimeError, ValueError, IndexError, SafetensorError) as error:
        raise IntegrityError(
            f"{folder}: weights do not fit surgery.json ({str(error).splitlines()[-1].strip()})",
            next_command="dvc checkout",
        ) from error
    set_dropout(model, dropout)
    return model.eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the weights of a file into a model that has all of them and no other.

    Raises:
        ValueError: a name or a shape is another.
    """
    own = model.state_dict()
    with safe_open(path, framework="pt") as file:
        if other := set(own) ^ set(file.keys()):
            raise ValueError(f"{min(other)} is in one of the two alone")
        for name, weight in own.items():
            saved = file.get_tensor(name)
            if saved.shape != weight.shape:
                raise ValueError(f"{name} is {list(saved.shape)}, expected {list(weight.shape)}")
            weight.copy_(saved)


def save_checkpoint(
    model: nn.Module, folder: Path, *, parent: Path, step: dict[str, Any], tokenizer_json: str = ""
) -> None:
    """Save weights, shapes and lineage; tokenizer and labels come from the parent unless given.

    Args:
        parent: the checkpoint that this one was made from.
        step: what was done, for the lineage in ``surgery.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.to_json_file(folder / "config.json")  # type: ignore[union-attr,operator]
    lineage = [*read_lineage(parent), step]
    layers = [asdict(shape) for shape in shapes_of(model)]
    record = {"format": 2, **asdict(model_shape_of(model)), "layers": layers, "lineage": lineage}
    (folder / "surgery.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if tokenizer_json:
        (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    else:
        shutil.copyfile(parent / "tokenizer.json", folder / "tokenizer.json")
    if (parent / "labels.json").exists():
        shutil.copyfile(parent / "labels.json", folder / "labels.json")


def copy_checkpoint(source: Path, target: Path) -> None:
    """What a stage that is switched off does."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)


def read_shapes(folder: Path) -> Shapes:
    """The layers' shapes in ``surgery.json``."""
    record = json.loads((folder / "surgery.json").read_text("utf-8"))
    return tuple(LayerShape(tuple(layer["heads"]), layer["ffn"]) for layer in record["layers"])


def read_model_shape(folder: Path) -> ModelShape | None:
    """What all layers share, in ``surgery.json``; None in format 1, which could cut none of it."""
    record = json.loads((folder / "surgery.json").read_text("utf-8"))
    if record["format"] == 1:
        return None
    return ModelShape(
        head_size=record["head_size"],
        channels=tuple(record["channels"]),
        pooled=record["pooled"],
        embedding_rank=record["embedding_rank"],
    )


def read_lineage(folder: Path) -> list[dict[str, Any]]:
    """The steps that led to a checkpoint; none for a pretrained model."""
    path = folder / "surgery.json"
    return json.loads(path.read_text("utf-8"))["lineage"] if path.exists() else []


def set_dropout(model: nn.Module, p: float) -> None:
    """Set every dropout of a model."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        elif hasattr(module, "attention_dropout"):  # a number where there is no such module
            setattr(module, "attention_dropout", p)  # noqa: B010


def clone(model: nn.Module) -> nn.Module:
    """A copy that shares nothing."""
    return copy.deepcopy(model)


def twin(model: nn.Module) -> nn.Module:
    """A second set of modules around the same weights: it can be cut at no cost in memory."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def checkpoint_bytes(folder: Path) -> int:
    """Bytes of model and tokenizer files."""
    files = (*CHECKPOINT_FILES, EXITS_FILE)
    names: Sequence[str] = [n for n in files if (folder / n).exists()]
    return sum((folder / name).stat().st_size for name in names)
