"""Where students come from, how several become one, and the copy from early in training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import TrainerControl, TrainerState

from tasks.errors import DataError, ParamsError
from tasks.modeling.architecture import layers_of
from tasks.modeling.averaging import average
from tasks.modeling.checkpoint import clone, save_checkpoint
from tasks.modeling.student import Beginning, _fresh, begin
from tasks.modeling.surgery import keep_neurons
from tasks.params import overlay, parse, read_yaml
from tasks.schema import Distill, Fresh
from tasks.training.early import KeepEarly
from tasks.training.schedule import rewound
from tests.tiny_models import CLASSES, PIECES, tiny

ROOT = Path(__file__).resolve().parents[2]
RAW = read_yaml(ROOT / "params.yaml")
LABELS = [f"label {c}" for c in range(CLASSES)]
TEXTS = ["w7 w8 w9", "w9 w10"]


def distill(**changes: object) -> Distill:
    return parse(overlay(RAW, {"distill": {"layers": [0, 2], **changes}})).distill


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT as a checkpoint of the chain, with a WordPiece tokenizer of its size."""
    folder = tmp_path_factory.mktemp("teacher")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "w", "##w", *(f"##{d}" for d in range(10)),
              *(str(d) for d in range(10))]  # fmt: skip
    pieces += [f"w{number}" for number in range(PIECES - len(pieces))]
    model = WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(pieces[:4])
    parent = folder / "parent"
    parent.mkdir()
    (parent / "tokenizer.json").write_text(tokenizer.to_str())
    (parent / "labels.json").write_text(json.dumps(LABELS))
    student = tiny("bert")
    keep_neurons(student, 1, range(5))  # an uneven shape, as an earlier run may have left it
    save_checkpoint(student, folder / "model", parent=parent, step={"stage": "baseline"})
    return folder / "model"


def beginning(config: Distill, checkpoint: Path, fetched: Path | None = None) -> Beginning:
    return begin(
        config, config.layers, teacher=checkpoint, fetched=fetched or checkpoint, labels=LABELS,
        max_length=16, texts=TEXTS, seed=3,
    )  # fmt: skip


def test_from_the_teacher(checkpoint: Path) -> None:
    start = beginning(distill(), checkpoint)
    assert len(layers_of(start.model)) == 2
    assert start.model.config.vocab_size < PIECES
    kept = Tokenizer.from_str(start.tokenizer_json).get_vocab()
    assert {"w7", "w8", "w9", "w10"} <= set(kept)
    assert "w11" not in kept
    assert start.parent == checkpoint


def test_from_an_earlier_run_it_comes_as_it_was_cut(checkpoint: Path) -> None:
    start = beginning(distill(student={"source": "run"}), checkpoint)
    assert len(layers_of(start.model)) == 3
    assert start.model.config.vocab_size == PIECES
    assert layers_of(start.model)[1].intermediate.dense.out_features == 5


def test_an_earlier_run_with_other_labels_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    (other / "labels.json").write_text(json.dumps(LABELS[::-1]))
    with pytest.raises(DataError, match=r"distill\.student\.run"):
        beginning(distill(student={"source": "run"}), checkpoint, other)


def test_fresh_weights_have_the_sizes_of_params(checkpoint: Path) -> None:
    sizes = {"layers": 1, "hidden": 12, "heads": 3, "ffn": 20}
    start = beginning(distill(student={"source": "fresh", "fresh": sizes}), checkpoint)
    (layer,) = layers_of(start.model)
    assert layer.intermediate.dense.weight.shape == (20, 12)
    assert start.model.config.num_labels == CLASSES


def test_fresh_heads_of_an_odd_size_are_refused_where_they_turn_by_pairs(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(ParamsError, match=r"distill\.student\.fresh: found 200 channels for 8"):
        _fresh(Fresh(layers=1, hidden=200, heads=8, ffn=64), tmp_path)


def test_from_another_pretrained_model_the_head_is_new(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    model = tiny("bert")
    model.save_pretrained(other)
    start = beginning(distill(student={"source": "path"}), checkpoint, other)
    assert start.parent == other
    assert start.model.classifier.out_features == CLASSES
    ours, theirs = layers_of(start.model)[1], layers_of(model)[2]
    torch.testing.assert_close(ours.output.dense.weight, theirs.output.dense.weight)


def test_a_layer_that_is_not_there_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ParamsError, match=r"distill\.layers: found \[0, 3\].*under 3"):
        beginning(distill(layers=[0, 3]), checkpoint)


def test_the_average_by_hand() -> None:
    models = [tiny("bert") for _ in range(3)]
    for number, model in enumerate(models):
        model.classifier.bias.data.fill_(float(number))
    other = clone(models[0])
    mean = average(models)
    assert torch.equal(mean.classifier.bias, torch.ones(CLASSES))
    torch.testing.assert_close(mean.classifier.weight, other.classifier.weight)


def test_the_early_copy_is_taken_once_and_knows_nothing_of_the_objective(tmp_path: Path) -> None:
    path, model = tmp_path / "deep" / "early.safetensors", torch.nn.Linear(2, 1)
    model.add_module("objective", torch.nn.Linear(3, 3))
    keep, control = KeepEarly(path, 0.1), TrainerControl()
    for step in range(1, 41):
        model.weight.data.fill_(float(step))
        state = TrainerState(global_step=step, max_steps=40)
        keep.on_step_end(None, state, control, model=model)
    saved = load_file(path)
    assert set(saved) == {"weight", "bias"}
    assert saved["weight"].tolist() == [[4.0, 4.0]]


def test_rewinding_by_hand() -> None:
    original = parse(RAW).distill.training.model_copy(
        update={"epochs": 10.0, "warmup": 0.2, "learning_rate": 8e-4}
    )
    for nothing in ({"epochs": 0.0}, {"warmup": 1.0}):  # it never came down from its peak
        assert rewound(original.model_copy(update=nothing), original).learning_rate == 8e-4
    for epochs, rate in ((2.0, 2e-4), (8.0, 8e-4), (20.0, 8e-4)):
        recovery = original.model_copy(update={"epochs": epochs, "learning_rate": 1.0e-5})
        found = rewound(original, recovery)
        assert found.learning_rate == pytest.approx(rate)
        assert (found.epochs, found.warmup) == (epochs, 0.0)
