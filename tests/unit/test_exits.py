"""Early exits: the heads, the files in stages and what is served answer alike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from tasks.errors import IntegrityError, ParamsError, UnavailableError
from tasks.evaluation.adaptive import CHOICES, CURVE, adaptive_depth, choose, tradeoff
from tasks.evaluation.evidence_markdown import sections
from tasks.hardware import PROFILES
from tasks.modeling.checkpoint import (
    EXITS_FILE,
    checkpoint_bytes,
    copy_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from tasks.modeling.exits import Exits, load_exits, require_exits, save_exits, states_after
from tasks.modeling.surgery import hidden_size, keep_channels, keep_heads, keep_neurons
from tasks.params import load, overlay, parse, read_yaml
from tasks.problems.classification import Split, pad
from tasks.quantization.export import export_onnx
from tasks.quantization.forms import write_form
from tasks.quantization.stages import (
    calibrate_exits,
    check_exits,
    cut_into_stages,
    serve_in_stages,
)
from tasks.release.servable import (
    SERVING_FILES,
    Servable,
    artifact_sha256,
    file_bytes,
    file_hashes,
    serving_files,
    write_servable,
)
from tasks.release.soundness import serving_fault
from tasks.release.stages import Staged, stage_names, sure
from tasks.runtimes.onnx import OnnxRuntime
from tasks.training.exits import divergence, fit_exits, look
from tests.tiny_models import CLASSES, GROUPED, LAYERS, PIECES, texts, tiny

KINDS = ("bert", "distilbert", "mpnet", GROUPED)
ROOT = Path(__file__).resolve().parents[2]
SERVING = {
    "problem": "classification", "runtime": "onnxruntime", "model": "model.onnx", "max_length": 16,
    "pad_id": 0, "pad_token": "[PAD]", "profile": "cpu-avx2",
}  # fmt: skip


def pruned(kind: str) -> nn.Module:
    """Three layers of unlike shapes, fewer channels."""
    model = tiny(kind)
    keep_heads(model, 0, [0, 2, 3])
    keep_heads(model, 2, [1])
    keep_neurons(model, 1, range(5, 16))
    keep_channels(model, range(3, 27))
    return model.eval()


def some_exits(model: nn.Module, layers: tuple[int, ...] = (1, 2)) -> Exits:
    torch.manual_seed(7)
    return Exits({n: nn.Linear(hidden_size(model), CLASSES) for n in layers}).eval()


@dataclass
class Made:
    """A model with exits, its graph before the cut, and the files after it."""

    model: nn.Module
    exits: Exits
    whole: Path
    stages: list[Path]

    def expected(self) -> list[np.ndarray]:
        """What PyTorch answers to the three texts at each exit."""
        ids, mask = texts(self.model)
        with torch.no_grad(), states_after(self.model, self.exits.layers) as states:
            end = self.model(input_ids=ids, attention_mask=mask).logits
            found = self.exits(self.model, states, mask)
        return [logits.numpy() for logits in (*found, end)]

    def staged(self, confidence: float) -> Staged:
        return Staged([OnnxRuntime(path) for path in self.stages], confidence=confidence)

    def feed(self) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = texts(self.model)
        return ids.numpy(), mask.numpy()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Made:
    folder = tmp_path_factory.mktemp("stages")
    model = pruned(request.param)
    exits, whole = some_exits(model), folder / "whole.onnx"
    export_onnx(model, whole, max_length=16, exits=exits)
    (folder / "model.onnx").write_bytes(whole.read_bytes())
    names = cut_into_stages(folder / "model.onnx", 2)
    assert names == ["model.onnx", "model.1.onnx", "model.2.onnx"]
    return Made(model, exits, whole, [folder / name for name in names])


every_kind = pytest.mark.parametrize("made", KINDS, indirect=True)
one_kind = pytest.mark.parametrize("made", ["bert"], indirect=True)


@every_kind
def test_stages_answer_as_the_model_at_every_exit(made: Made) -> None:
    expected, feed = made.expected(), made.feed()
    for path in made.stages:
        onnx.checker.check_model(onnx.load(path))
    for found, logits in zip(made.staged(1.0).walk(*feed), expected, strict=True):
        np.testing.assert_allclose(found, logits, atol=1e-4)
    to_the_end, depths = made.staged(1.0).answer(*feed)
    np.testing.assert_allclose(to_the_end, expected[-1], atol=1e-4)
    assert depths.tolist() == [3, 3, 3]
    at_once, depths = made.staged(1e-9).answer(*feed)
    np.testing.assert_allclose(at_once, expected[0], atol=1e-4)
    assert depths.tolist() == [1, 1, 1]
    ids = [row[: int(m.sum())].tolist() for row, m in zip(*texts(made.model), strict=True)]
    assert check_exits(made.model, made.exits, made.whole, ids) < 1e-4


@every_kind
def test_a_text_is_answered_in_a_batch_as_alone(made: Made) -> None:
    sure_of = np.sort([np.exp(row - row.max()).sum() ** -1 for row in made.expected()[0]])
    staged = made.staged(float(sure_of[1:].mean()))  # one of three leaves at the first exit
    ids, mask = made.feed()
    logits, depths = staged.answer(ids, mask)
    assert sorted(depths)[0] == 1 < max(depths)
    for row in range(3):
        length = int(mask[row].sum())
        alone = staged.answer(ids[row : row + 1, :length], mask[row : row + 1, :length])
        np.testing.assert_allclose(alone[0][0], logits[row], atol=1e-5)
        assert alone[1].tolist() == [depths[row]]


@one_kind
@pytest.mark.parametrize("scheme", ["dynamic", "static", "weight_only", "half", "bf16", "none"])
def test_a_quantised_graph_is_cut_without_a_change(made: Made, scheme: str, tmp_path: Path) -> None:
    config = load(ROOT / "params.yaml").quantize.model_copy(update={"scheme": scheme})
    ids, mask = made.feed()
    path = tmp_path / "model.onnx"
    write_form(made.whole, path, config, PROFILES["cpu-avx2"], calibration=ids.tolist())
    whole = list(OnnxRuntime(path).feed({"input_ids": ids, "attention_mask": mask}).values())
    names = cut_into_stages(path, 2)
    staged = Staged([OnnxRuntime(tmp_path / name) for name in names], confidence=1.0)
    for found, logits in zip(staged.walk(ids, mask), (*whole[1:3], whole[0]), strict=True):
        np.testing.assert_allclose(found, logits, atol=2e-3 if scheme == "half" else 1e-5)
    tables = [sum(t.dims[:1] == [PIECES] for t in onnx.load(tmp_path / name).graph.initializer)
              for name in names]  # fmt: skip
    assert tables[0] >= 1
    assert tables[1:] == [0, 0]  # the word table is in one file


@one_kind
def test_an_exit_that_answers_otherwise_is_noticed(made: Made) -> None:
    wrong = some_exits(made.model)
    wrong.heads["2"].bias.data += 0.1
    with pytest.raises(IntegrityError, match=r"an exit's logits differ by 0\.1"):
        check_exits(made.model, wrong, made.whole, [[3, 4, 5]])


def word_level() -> Tokenizer:
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {f"w{n}": n for n in range(2, PIECES)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def labelled(model: nn.Module, count: int = 40) -> Split:
    """Texts with the label that the whole model gives, so that full depth is right."""
    draw = np.random.default_rng(3)
    rows = [draw.integers(2, PIECES, draw.integers(3, 9)).tolist() for _ in range(count)]
    ids, mask = pad(rows, 0)
    with torch.no_grad():
        labels = model(input_ids=ids, attention_mask=mask).logits.argmax(-1).numpy()
    return Split([" ".join(f"w{n}" for n in row) for row in rows], labels)


@one_kind
def test_a_servable_folder_in_stages(made: Made, tmp_path: Path) -> None:
    folder, split = tmp_path / "folder", labelled(made.model)
    write_servable(folder, labels=[f"l{n}" for n in range(CLASSES)], serving=SERVING,
                   tokenizer_json=word_level().to_str())  # fmt: skip
    (folder / "model.onnx").write_bytes(made.whole.read_bytes())
    found = serve_in_stages(folder, (1, 2), "auto", validation=split, max_loss=0.0)
    assert found["full_depth"] == 1.0 == found["accuracy"]
    names = ("labels.json", "model.1.onnx", "model.2.onnx", "model.onnx", "serving.json",
             "tokenizer.json")  # fmt: skip
    assert serving_files(folder) == names == tuple(sorted(p.name for p in folder.iterdir()))
    assert tuple(file_hashes(folder)) == names
    assert file_bytes(folder) == sum(p.stat().st_size for p in folder.iterdir())
    schema = json.loads((ROOT / "infra/schemas/serving.schema.json").read_text("utf-8"))
    Draft202012Validator(schema).validate(json.loads((folder / "serving.json").read_text()))

    servable = Servable(folder)
    assert servable.describe()["stages"] == 3
    assert set(servable.depths(split.texts)) <= {1, 2, 3}
    rows = adaptive_depth(servable, split.texts, split.labels, servable.labels,
                          timed=split.texts[:4], rounds=2)  # fmt: skip
    assert [row["confidence"] for row in rows] == sorted({*CURVE, found["confidence"]})
    assert [row["confidence"] for row in rows if row["served"]] == [found["confidence"]]
    assert all(sum(row["share"]) == pytest.approx(1) for row in rows)
    assert rows[0]["latency_ms"] <= rows[-1]["latency_ms"]
    assert rows[-1]["share"] == [0.0, 0.0, 1.0]
    evidence = json.loads((ROOT / "infra/schemas/summary.schema.json").read_text("utf-8"))
    own = evidence["$defs"]["evidence"]["properties"]["adaptive_depth"]
    Draft202012Validator(own).validate(rows)
    with pytest.raises(ValidationError):
        Draft202012Validator(own).validate([{**rows[0], "latency_ms": 0}, rows[1]])
    title, body = sections({"adaptive_depth": rows})
    assert title == "## Adaptive depth"
    assert ", served" in body

    before = artifact_sha256(file_hashes(folder))
    (folder / "model.2.onnx").write_bytes((folder / "model.1.onnx").read_bytes())
    assert artifact_sha256(file_hashes(folder)) != before
    with pytest.raises(IntegrityError):
        Servable(folder)
    (folder / "model.2.onnx").unlink()
    with pytest.raises(UnavailableError, match=r"model\.2\.onnx: missing"):
        Servable(folder)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"stages": ["model.onnx", "model.1.onnx"], "confidence": 0.5}, None),
        ({"stages": ["model.onnx", "model.1.onnx"]}, "confidence: found None"),
        ({"stages": ["model.onnx", "model.1.onnx"], "confidence": 0.0}, "confidence: found 0.0"),
        ({"stages": ["model.onnx", "model.1.onnx"], "confidence": True}, "confidence: found True"),
        ({"stages": ["model.onnx"], "confidence": 0.5}, "stages: found"),
        ({"stages": ["model.onnx", "../model.1.onnx"], "confidence": 0.5}, "stages: found"),
        ({"confidence": 0.5}, "confidence: found one without stages"),
        (
            {"stages": ["model.onnx", "model.1.onnx"], "confidence": 0.5, "runtime": "openvino"},
            "runtime: found 'openvino' with stages",
        ),
    ],
)
def test_settings_that_cannot_be_right(change: dict[str, object], fault: str | None) -> None:
    found = serving_fault(SERVING | change)
    assert found is None if fault is None else str(found).startswith(fault)


def test_without_stages_a_folder_has_the_files_it_had(tmp_path: Path) -> None:
    assert serving_files(tmp_path) == SERVING_FILES
    (tmp_path / "serving.json").write_text(json.dumps(SERVING))
    assert serving_files(tmp_path) == SERVING_FILES
    (tmp_path / "serving.json").write_text("{")
    assert serving_files(tmp_path) == SERVING_FILES


@pytest.mark.parametrize("kind", KINDS)
def test_training_leaves_the_model_alone_and_lessens_the_divergence(kind: str) -> None:
    model = pruned(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    draw = np.random.default_rng(2)
    rows = [draw.integers(2, PIECES, draw.integers(3, 12)).tolist() for _ in range(220)]
    train, held = look(model, rows[:160], (1, 2)), look(model, rows[160:], (1, 2))
    exits = fit_exits(train, held)
    assert exits.layers == (1, 2)
    for seen, enough in ((train, 0.5), (held, 1.0)):
        untrained = divergence(seen.logits, torch.zeros_like(seen.logits))
        for logits in exits.answer(seen.states):
            assert divergence(seen.logits, logits) < enough * untrained
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    alone = look(model, [rows[5]], (1, 2))
    torch.testing.assert_close(alone.states[1][0], train.states[1][5], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone.logits[0], train.logits[5], atol=1e-5, rtol=1e-4)


def test_confidence_of_each_exit_is_calibrated() -> None:
    model = pruned("bert")
    exits = some_exits(model)
    rows = [[2 + (7 * n + k) % 40 for k in range(4)] for n in range(30)]
    before = [logits.clone() for logits in exits.answer(look(model, rows, (1, 2)).states)]
    temperatures = calibrate_exits(model, exits, rows, np.arange(30) % CLASSES)
    after = exits.answer(look(model, rows, (1, 2)).states)
    for old, new, temperature in zip(before, after, temperatures, strict=True):
        torch.testing.assert_close(new * temperature, old)


def test_a_checkpoint_keeps_its_exits_and_loads_them_strictly(tmp_path: Path) -> None:
    model, parent, folder = pruned("mpnet"), tmp_path / "parent", tmp_path / "own"
    parent.mkdir()
    (parent / "tokenizer.json").write_text("{}")
    save_checkpoint(model, folder, parent=parent, step={"stage": "finetune"})
    assert load_exits(folder, model) is None
    size, exits = checkpoint_bytes(folder), some_exits(model)
    save_exits(exits, folder)
    assert checkpoint_bytes(folder) == size + (folder / EXITS_FILE).stat().st_size
    copy_checkpoint(folder, tmp_path / "copy")
    again = load_exits(tmp_path / "copy", load_checkpoint(tmp_path / "copy"))
    assert again is not None
    assert again.layers == (1, 2)
    for name, tensor in exits.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    state = load_file(folder / EXITS_FILE)
    for broken in (
        {k: v for k, v in state.items() if k != "heads.1.bias"},
        state | {"heads.1.scale": torch.ones(1)},
        state | {"heads.1.weight": torch.ones(CLASSES, 99)},
        {k.replace(".2.", f".{LAYERS}."): v for k, v in state.items()},
        {},
    ):
        save_file(broken, folder / EXITS_FILE)
        with pytest.raises(IntegrityError, match="the exits do not fit the model"):
            load_exits(folder, model)
    (folder / EXITS_FILE).write_bytes(b"no weights")
    with pytest.raises(IntegrityError):
        load_exits(folder, model)


def test_the_confidence_is_the_least_that_keeps_the_accuracy() -> None:
    # ten texts of class 0; the first exit is wrong on two of them, with 0.62 and 0.71
    certain = np.array([0.97, 0.93, 0.88, 0.81, 0.78, 0.75, 0.71, 0.66, 0.62, 0.55])
    wrong = np.isin(certain, [0.62, 0.71])
    p = np.where(wrong, 1 - certain, certain)
    first = np.log(np.stack([p, 1 - p], -1))
    logits = np.stack([first, np.tile([3.0, 0.0], (10, 1))])
    labels = np.zeros(10, dtype=int)
    at = tradeoff(logits, labels, 0.7)
    assert at == {"confidence": 0.7, "accuracy": 0.9, "share": [0.7, 0.3]}
    assert choose(logits, labels, max_loss=0.0) == 0.72
    assert choose(logits, labels, max_loss=10.0) == 0.63
    assert choose(logits, labels, max_loss=50.0) == CHOICES[0]
    assert tradeoff(logits, labels, 1.0)["share"] == [0.0, 1.0]
    first[:, 0] = 90.0  # a softmax of 1.0 in floating point still does not stop at 1
    assert not sure(first.astype(np.float32), 1.0).any()


def test_params() -> None:
    raw = read_yaml(ROOT / "params.yaml")
    assert load(ROOT / "params.yaml").exits.layers == ()
    assert parse(overlay(raw, {"exits": {"layers": [1, 2], "confidence": 1}})).exits.confidence == 1
    for change, match in (
        ({"exits": {"layers": [2, 1]}}, "exits.layers: found"),
        ({"exits": {"layers": [0]}}, "exits.layers"),
        ({"exits": {"confidence": 0.0}}, "exits.confidence"),
        ({"exits": {"confidence": "often"}}, "exits.confidence"),
        ({"exits": {"layers": [1]}, "quantize": {"aware": {"mode": "always"}}}, "aware"),
        (
            {"exits": {"layers": [1]}, "quantize": {"runtimes": ["onnxruntime", "openvino"]}},
            "expected .onnxruntime.: no other engine",
        ),
    ):
        with pytest.raises(ParamsError, match=match):
            parse(overlay(raw, change))
    require_exits((), 1)
    require_exits((1, 2), 3)
    with pytest.raises(ParamsError, match="expected numbers under 3"):
        require_exits((1, 3), 3)
    assert stage_names(3) == ("model.onnx", "model.1.onnx", "model.2.onnx")
