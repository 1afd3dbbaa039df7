"""What a student is before it has learned anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from tasks import schema
from tasks.errors import DataError, ParamsError
from tasks.modeling.architecture import layers_of, set_sizes
from tasks.modeling.checkpoint import load_checkpoint, load_pretrained, set_dropout
from tasks.modeling.surgery import (
    keep_layers,
    keep_positions,
    keep_vocabulary,
    positions_needed,
)
from tasks.modeling.vocabulary import trim


@dataclass(frozen=True)
class Beginning:
    """A student, its tokenizer file, and the folder that both come from."""

    model: PreTrainedModel
    tokenizer_json: str
    parent: Path


def begin(
    config: schema.Distill,
    layers: Sequence[int],
    *,
    teacher: Path,
    fetched: Path,
    labels: Sequence[str],
    max_length: int,
    texts: Sequence[str],
    seed: int,
) -> Beginning:
    """Build the student that params describe.

    Args:
        layers: indices of the source's layers that it keeps.
        teacher: the teacher's checkpoint.
        fetched: what `fetch` brought for ``package``, ``path``, ``hub`` and ``run``.
        labels: the teacher's, in the order of its logits.
        texts: training texts; their pieces are the vocabulary that is kept.

    Raises:
        ParamsError: a layer that the source does not have, or longer texts than it has positions.
        DataError: an earlier run's student knows other labels.
    """
    torch.manual_seed(seed)
    source = config.student.source
    parent = teacher if source in ("teacher", "fresh") else fetched
    tokenizer_json = (parent / "tokenizer.json").read_text("utf-8")
    if source == "run":  # it comes as it was cut
        require_labels(fetched, labels)
        model = load_checkpoint(fetched)
        positions_needed(model, max_length)
        set_dropout(model, config.training.dropout)
        return Beginning(model, tokenizer_json, parent)
    if source == "teacher":
        model = load_checkpoint(teacher)
    elif source == "fresh":
        model = _fresh(config.student.fresh, teacher)
    else:
        model = load_pretrained(
            fetched, classes=len(labels), dropout=0.0, seed=seed, key="distill.student"
        )
    if source != "fresh":
        require_layers(layers, len(layers_of(model)))
        keep_layers(model, layers)
    keep_positions(model, max_length)
    if config.vocabulary.trim:
        padding = model.config.pad_token_id
        smaller = trim(tokenizer_json, texts, min_count=config.vocabulary.min_count,
                       always=[padding])  # fmt: skip
        pad = smaller.kept_ids.index(padding)
        keep_vocabulary(model, smaller.kept_ids, pad=pad)
        tokenizer_json = smaller.tokenizer_json
    set_dropout(model, config.training.dropout)
    return Beginning(model, tokenizer_json, parent)


def require_layers(layers: Sequence[int], available: int) -> None:
    """Refuse indices of layers that are not there."""
    if max(layers) >= available:
        raise ParamsError(
            f"distill.layers: found {list(layers)}, expected indices under {available}, the "
            "number of layers of the model that the student starts from",
            next_command="stillroom compress --set 'distill.layers=[0, 2, 5]'",
        )


def require_labels(folder: Path, labels: Sequence[str]) -> None:
    """Refuse a student whose logits mean something else."""
    own = json.loads((folder / "labels.json").read_text("utf-8"))
    if own != list(labels):
        raise DataError(
            f"distill.student.run: found a model of {len(own)} labels, expected the {len(labels)} "
            "of this data set in the same order",
            next_command="stillroom compress --set distill.student.source=teacher",
        )


def _fresh(sizes: schema.Fresh, teacher: Path) -> PreTrainedModel:
    """Random weights in the teacher's architecture."""
    config = AutoConfig.from_pretrained(teacher)
    if getattr(config, "rope_parameters", None) and (sizes.hidden // sizes.heads) % 2:
        raise ParamsError(
            f"distill.student.fresh: found {sizes.hidden} channels for {sizes.heads} heads, "
            f"expected an even number each: a {config.model_type} turns them by pairs",
            next_command="stillroom compress --set distill.student.fresh.heads=4",
        )
    set_sizes(config, layers=sizes.layers, hidden=sizes.hidden, heads=sizes.heads, ffn=sizes.ffn)
    config._attn_implementation = "eager"
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
