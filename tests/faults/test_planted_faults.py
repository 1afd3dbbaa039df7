"""At least fifty faults, planted one at a time, and what catches each; twenty sound exports.

The models are small and real: exported, quantised, judged and registered by the product's own
code. Nothing here looks for a fault in a way that the product does not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tasks.errors import GateRefused, IntegrityError, StillroomError, UsageError
from tasks.hardware import PROFILES
from tasks.modeling.checkpoint import save_checkpoint
from tasks.params import load, overlay, parse, read_yaml
from tasks.problems.classification import encode, logits_of, read_tokenizer
from tasks.quantization.export import check_export, export_onnx, write_serving
from tasks.quantization.forms import weight_bits, write_form
from tasks.release.gate import Evidence, judge
from tasks.release.packaging import admissible
from tasks.release.servable import artifact_sha256, file_bytes, file_hashes
from tasks.validate import servable_logits
from tests.conftest import ROOT
from tests.tiny_models import PIECES, tiny

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
WORDS = tuple(f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "pe") for b in "bcdfghklmn")
NAMES = [f"class {letter}" for letter in "abcde"]
LIMITS = load(ROOT / "params.yaml").gate
LENGTH, POSITIONS = 16, 40
KINDS = ("bert", "distilbert", "mpnet", "llama")
FORMS: tuple[dict[str, Any], ...] = (
    {}, {"per_channel": False}, {"scheme": "static"}, {"scheme": "weight_only"}, {"scheme": "none"},
)  # fmt: skip
DECISIVE = 0.3
"""Least distance of the two best logits, in their spread: random models waver more than trained."""


@dataclass(frozen=True)
class Made:
    """A checkpoint, its fp32 graph, and texts that it answers decisively."""

    checkpoint: Path
    graph: Path
    model: Any
    texts: list[str]
    answers: np.ndarray


def make(kind: str, room: Path) -> Made:
    """Save and export a small model that knows as many words as its table has rows."""
    model = tiny(kind)
    pad = model.config.pad_token_id
    special = [*SPECIAL[1:2], *SPECIAL[:1], *SPECIAL[2:]] if pad == 1 else list(SPECIAL)
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS[: PIECES - 4]])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("</s>", 3), ("<s>", 2))
    parent, checkpoint = room / "parent", room / "checkpoint"
    parent.mkdir(parents=True)
    (parent / "labels.json").write_text(json.dumps(NAMES))
    save_checkpoint(model, checkpoint, parent=parent, step={"stage": "finetune"},
                    tokenizer_json=tokenizer.to_str())  # fmt: skip
    graph = room / "float.onnx"
    export_onnx(model, graph, max_length=LENGTH)
    generator = np.random.default_rng(7)
    texts = [" ".join(generator.choice(WORDS[: PIECES - 4], generator.integers(2, 12)).tolist())
             for _ in range(600)]  # fmt: skip
    logits = logits_of(model, read_tokenizer(checkpoint, LENGTH), texts)
    best = np.sort(logits, axis=1)
    sure = (best[:, -1] - best[:, -2]) > DECISIVE * logits.std()
    kept = [text for text, keep in zip(texts, sure, strict=True) if keep][:200]
    return Made(checkpoint, graph, model, kept, logits[sure].argmax(-1)[:200])


def servable(made: Made, folder: Path, *, graph: Path | None = None, **changes: Any) -> Path:
    """The servable folder as `quantize` makes it."""
    params = parse(overlay(read_yaml(ROOT / "params.yaml"), {"quantize": changes}))
    profile = PROFILES[params.hardware.profile]
    folder.mkdir(parents=True, exist_ok=True)
    ids = encode(read_tokenizer(made.checkpoint, LENGTH), made.texts[:50])
    write_form(graph or made.graph, folder / "model.onnx", params.quantize, profile,
               calibration=ids)  # fmt: skip
    write_serving(made.checkpoint, folder, max_length=LENGTH, profile=profile.name,
                  precision="int8", weight_bits=weight_bits(params.quantize, profile))  # fmt: skip
    return folder


GATE = "gate drop, drop_upper95, parity"
LOADER = "IntegrityError 4"
"""What `caught` says of a fault, by who catches it."""


def caught(made: Made, folder: Path) -> str | None:
    """What the product says to a folder on its way through validate; None where nothing."""
    try:
        logits = servable_logits(folder, made.texts, NAMES)
    except StillroomError as error:
        return f"{type(error).__name__} {error.exit_code}"
    agree = float((logits.argmax(-1) == made.answers).mean())
    verdict = judge(
        Evidence(
            drop=100 * (1 - agree), drop_upper95=100 * (1 - agree), macro_f1_drop=0.0,
            class_drop=0.0, ece=0.0, bytes=file_bytes(folder), parity=agree,
            artifact_sha256=artifact_sha256(file_hashes(folder)), detectable_drop=1.0,
        ), LIMITS,
    )  # fmt: skip
    return None if verdict.passed else "gate " + ", ".join(c.metric for c in verdict.failures)


@pytest.fixture(scope="module")
def all_made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    room, kept = tmp_path_factory.mktemp("made"), dict[str, Made]()

    def get(kind: str) -> Made:
        if kind not in kept:
            kept[kind] = make(kind, room / kind)
        return kept[kind]

    return get


@pytest.fixture(scope="module")
def made(all_made: Callable[[str], Made]) -> Made:
    return all_made("bert")


@pytest.fixture(scope="module")
def sound(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in int8 with a manifest that holds its verdict."""
    folder = servable(made, tmp_path_factory.mktemp("sound") / "bundle")
    manifest(folder)
    return folder


def manifest(folder: Path) -> None:
    """As `deploy` writes it, as far as a registration reads it."""
    hashes = file_hashes(folder)
    whole = artifact_sha256(hashes)
    check = {"metric": "drop", "kind": "max", "value": 0.1, "limit": 2.0, "passed": True}
    gate = {"passed": True, "checks": [check], "artifact_sha256": whole, "detectable_drop": 1.0}
    content = {"format": 1, "files": hashes, "artifact_sha256": whole, "gate": gate}
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", range(len(FORMS)))
def test_no_false_alarm(
    all_made: Callable[[str], Made], tmp_path: Path, kind: str, form: int
) -> None:
    made = all_made(kind)
    assert len(made.texts) == 200
    assert len(set(made.answers.tolist())) >= 2
    ids = encode(read_tokenizer(made.checkpoint, LENGTH), made.texts[:64])
    check_export(made.model, made.graph, ids, pad_id=made.model.config.pad_token_id)
    folder = servable(made, tmp_path / "bundle", **FORMS[form])
    manifest(folder)
    assert caught(made, folder) is None
    admissible(folder)


# faults in the graph: planted before anyone has hashed it


def tensor_of(graph: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in graph.graph.initializer if t.name == name)


def matrices(graph: onnx.ModelProto) -> list[str]:
    """Initializers that a MatMul or a Gemm multiplies by, in order."""
    constants = {t.name for t in graph.graph.initializer}
    nodes = [n for n in graph.graph.node if n.op_type in ("MatMul", "Gemm")]
    return [n.input[1] for n in nodes if n.input[1] in constants]


def changed(graph: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = tensor_of(graph, name)
    array = np.ascontiguousarray(change(numpy_helper.to_array(tensor).copy()))
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def set_row(value: float, array: np.ndarray) -> np.ndarray:
    array.reshape(array.shape[0], -1)[0] = value
    return array


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "twice too large": lambda a: 2 * a,
    "with the wrong sign": lambda a: -a,
    "all zero": np.zeros_like,
    "with rows out of order": lambda a: np.roll(a, 1, axis=0),
    "with NaN in one channel": partial(set_row, np.nan),
    "with infinity in one channel": partial(set_row, np.inf),
}
PLACES = {"value": 2, "attention output": 3, "feed-forward in": 4, "feed-forward out": 5,
          "last feed-forward out": -3, "pooler": -2, "classifier": -1}  # fmt: skip
GRAPH_FAULTS = {
    **{f"{place} {what}": (index, change) for place, index in PLACES.items()
       for what, change in CHANGES.items()
       if place not in ("pooler", "classifier") or what != "twice too large"},  # only surer
}  # fmt: skip


@pytest.mark.parametrize("fault", GRAPH_FAULTS)
def test_a_wrong_matrix_is_caught_at_export_and_in_int8(
    made: Made, tmp_path: Path, fault: str
) -> None:
    index, change = GRAPH_FAULTS[fault]
    graph = onnx.load(made.graph)
    changed(graph, matrices(graph)[index], change)
    onnx.save(graph, tmp_path / "float.onnx")
    ids = encode(read_tokenizer(made.checkpoint, LENGTH), made.texts[:64])
    with pytest.raises(IntegrityError, match="logits differ"):
        check_export(made.model, tmp_path / "float.onnx", ids, pad_id=0)
    # int8 has no scale for what is no number: its quantiser stops there
    finite = "NaN" not in fault and "infinity" not in fault
    folder = servable(made, tmp_path / "bundle", graph=tmp_path / "float.onnx",
                      scheme="dynamic" if finite else "none")  # fmt: skip
    assert caught(made, folder) == (GATE if finite else LOADER)


def drop_layer(graph: onnx.ModelProto) -> None:
    """What went into the second layer comes out of it."""
    norms = [n for n in graph.graph.node if n.op_type == "LayerNormalization"]
    into, out = norms[2].output[0], norms[4].output[0]
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            if name == out:
                node.input[place] = into


def swap_outputs(graph: onnx.ModelProto) -> None:
    """Another tensor is returned first."""
    other = helper.make_empty_tensor_value_info(graph.graph.node[-2].output[0])
    first = graph.graph.output[0]
    graph.graph.output.remove(first)
    graph.graph.output.extend([other, first])


def roll_table(rows: int, graph: onnx.ModelProto) -> None:
    table = next(t.name for t in graph.graph.initializer if list(t.dims)[:1] == [rows])
    changed(graph, table, lambda a: np.roll(a, 1, axis=0))


def short_table(graph: onnx.ModelProto) -> None:
    table = next(t.name for t in graph.graph.initializer if list(t.dims)[:1] == [PIECES])
    changed(graph, table, lambda a: a[:-1])


def permute_answers(graph: onnx.ModelProto) -> None:
    changed(graph, matrices(graph)[-1], lambda a: np.roll(a, 1, axis=0))
    bias = next(n for n in graph.graph.node if "logits" in n.output).input[2]
    changed(graph, bias, lambda a: np.roll(a, 1))


def rename_input(graph: onnx.ModelProto) -> None:
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = "tokens" if name == "input_ids" else name
    graph.graph.input[0].name = "tokens"


def another_type(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32


def newer_operators(graph: onnx.ModelProto) -> None:
    graph.opset_import[0].version = 999


def fewer_answers(graph: onnx.ModelProto) -> None:
    last = next(n for n in graph.graph.node if "logits" in n.output)
    for name in last.input[1:]:
        changed(graph, name, lambda a: a[:-1])


STRUCTURE: dict[str, tuple[str, Callable[[onnx.ModelProto], None]]] = {
    "a layer is dropped": (GATE, drop_layer),
    "another tensor is returned": (LOADER, swap_outputs),
    "words have each other's vectors": (GATE, partial(roll_table, PIECES)),
    "positions have each other's vectors": (GATE, partial(roll_table, POSITIONS)),
    "the word table is a row short": (LOADER, short_table),
    "answers have each other's logits": (GATE, permute_answers),
    "an input has another name": (LOADER, rename_input),
    "an input has another type": (LOADER, another_type),
    "it wants operators of a later day": (LOADER, newer_operators),
    "it has an answer fewer": (LOADER, fewer_answers),
}


@pytest.mark.parametrize("fault", STRUCTURE)
def test_another_structure_is_caught(made: Made, tmp_path: Path, fault: str) -> None:
    graph = onnx.load(made.graph)
    who, spoil = STRUCTURE[fault]
    spoil(graph)
    folder = servable(made, tmp_path / "bundle", scheme="none")
    onnx.save(graph, folder / "model.onnx")
    assert caught(made, folder) == who


QUANTISED: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "a scale is doubled": ("_scale", lambda a: (2 * a).astype(a.dtype)),
    "a scale is halved": ("_scale", lambda a: (a / 2).astype(a.dtype)),
    "a scale is NaN": ("_scale", lambda a: np.full_like(a, np.nan)),
    "a zero point is shifted": ("_zero_point", lambda a: (a + 60).astype(a.dtype)),
    "bytes lost their sign": ("_quantized", lambda a: np.abs(a.astype(int)).astype(a.dtype)),
    "bytes are shifted by one": ("_quantized", lambda a: np.roll(a, 1)),
}


@pytest.mark.parametrize("fault", QUANTISED)
def test_wrong_numbers_of_quantisation_are_caught(
    made: Made, sound: Path, tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(sound, folder)
    end, change = QUANTISED[fault]
    graph = onnx.load(folder / "model.onnx")
    for tensor in list(graph.graph.initializer):
        if tensor.name.endswith(end):
            changed(graph, tensor.name, change)
    onnx.save(graph, folder / "model.onnx")
    assert caught(made, folder) == (LOADER if "NaN" in fault else GATE)


@pytest.mark.parametrize("factor", [0.25, 4.0])
@pytest.mark.parametrize("place", [p for p in PLACES if p not in ("pooler", "classifier")])
def test_one_wrong_scale_is_caught(
    made: Made, sound: Path, tmp_path: Path, place: str, factor: float
) -> None:
    """Of a single matrix in a single layer."""
    folder = tmp_path / "bundle"
    shutil.copytree(sound, folder)
    graph = onnx.load(folder / "model.onnx")
    scale = f"{matrices(onnx.load(made.graph))[PLACES[place]]}_scale"
    assert scale in {tensor.name for tensor in graph.graph.initializer}
    changed(graph, scale, lambda a: (factor * a).astype(a.dtype))
    onnx.save(graph, folder / "model.onnx")
    assert caught(made, folder) == GATE


# faults in the other files


def edit(name: str, change: Callable[[Any], Any], folder: Path) -> None:
    content = json.loads((folder / name).read_text("utf-8"))
    (folder / name).write_text(json.dumps(change(content)), encoding="utf-8")


def cut(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def tokenizer_vocabulary(change: Callable[[dict[str, int]], dict[str, int]], content: Any) -> Any:
    content["model"]["vocab"] = change(content["model"]["vocab"])
    return content


def rotated(vocabulary: dict[str, int]) -> dict[str, int]:
    names, places = list(vocabulary), list(vocabulary.values())
    return dict(zip(names, [*places[:4], *places[5:], places[4]], strict=True))


FILES: dict[str, Callable[[Path], None]] = {
    "labels: two are swapped": partial(edit, "labels.json", lambda c: [c[1], c[0], *c[2:]]),
    "labels: all are moved on": partial(edit, "labels.json", lambda c: [*c[1:], c[0]]),
    "labels: one stands twice": partial(edit, "labels.json", lambda c: [c[0], *c[:-1]]),
    "labels: one is missing": partial(edit, "labels.json", lambda c: c[:-1]),
    "labels: one too many": partial(edit, "labels.json", lambda c: [*c, "class f"]),
    "labels: a number": partial(edit, "labels.json", lambda c: [1, *c[1:]]),
    "labels: an empty name": partial(edit, "labels.json", lambda c: ["", *c[1:]]),
    "labels: another name": partial(edit, "labels.json", lambda c: ["other", *c[1:]]),
    "labels: an object": partial(edit, "labels.json", lambda c: dict.fromkeys(c, 0)),
    "labels: cut off": partial(cut, "labels.json"),
    "serving: no padding id": partial(
        edit, "serving.json", lambda c: {k: v for k, v in c.items() if k != "pad_id"}),
    "serving: padding by a word": partial(edit, "serving.json", lambda c: c | {"pad_id": 4000}),
    "serving: negative padding": partial(edit, "serving.json", lambda c: c | {"pad_id": -1}),
    "serving: a length of one": partial(edit, "serving.json", lambda c: c | {"max_length": 1}),
    "serving: a length in words": partial(
        edit, "serving.json", lambda c: c | {"max_length": "long"}),
    "serving: another engine": partial(edit, "serving.json", lambda c: c | {"runtime": "abacus"}),
    "serving: another model": partial(edit, "serving.json", lambda c: c | {"model": "other.onnx"}),
    "serving: nine bits": partial(edit, "serving.json", lambda c: c | {"weight_bits": 9}),
    "serving: a list": partial(edit, "serving.json", lambda c: [c]),
    "serving: cut off": partial(cut, "serving.json"),
    "tokenizer: other numbers": partial(
        edit, "tokenizer.json", partial(tokenizer_vocabulary, rotated)),
    "tokenizer: more pieces than vectors": partial(
        edit, "tokenizer.json", partial(
            tokenizer_vocabulary, lambda v: v | {f"x{i}": len(v) + i for i in range(9)})),
    "tokenizer: words are cut at letters": partial(
        edit, "tokenizer.json", lambda c: c | {"pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}}),
    "tokenizer: nothing around a text": partial(
        edit, "tokenizer.json", lambda c: c | {"post_processor": None}),
    "tokenizer: every letter is made large": partial(
        edit, "tokenizer.json", lambda c: c | {"normalizer": {"type": "Uppercase"}}),
    "tokenizer: what is unknown is a word": partial(
        edit, "tokenizer.json", lambda c: c | {"model": c["model"] | {
            "max_input_chars_per_word": 2}}),
    "tokenizer: cut off": partial(cut, "tokenizer.json"),
    "model: cut off": partial(cut, "model.onnx"),
    "model: empty": lambda folder: (folder / "model.onnx").write_bytes(b"") and None,
    "model: missing": lambda folder: (folder / "model.onnx").unlink(),
}  # fmt: skip


SEEN_IN_ANSWERS = {
    "labels: two are swapped", "labels: all are moved on", "tokenizer: other numbers",
    "tokenizer: words are cut at letters", "tokenizer: nothing around a text",
    "tokenizer: what is unknown is a word",
}  # fmt: skip
"""Sound files, and wrong answers: only parity and the drop see these."""


@pytest.mark.parametrize("fault", FILES)
def test_a_wrong_file_is_caught_by_loader_or_gate_and_by_its_hash(
    made: Made, sound: Path, tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(sound, folder)
    FILES[fault](folder)
    missing = fault.endswith("missing") and fault.startswith("model")
    expected = GATE if fault in SEEN_IN_ANSWERS else "UnavailableError 5" if missing else LOADER
    assert caught(made, folder) == expected
    with pytest.raises(UsageError if missing else IntegrityError):
        admissible(folder)


RECORDS: dict[str, tuple[Callable[[Any], Any], type[StillroomError]]] = {
    "the verdict is a refusal": (
        lambda c: c | {"gate": c["gate"] | {"passed": False}}, GateRefused),
    "there is no verdict": (lambda c: {k: v for k, v in c.items() if k != "gate"}, GateRefused),
    "the verdict is on other bytes": (
        lambda c: c | {"gate": c["gate"] | {"artifact_sha256": "0" * 64}}, IntegrityError),
    "the whole hash is another": (lambda c: c | {"artifact_sha256": "0" * 64}, IntegrityError),
    "a file's hash is another": (
        lambda c: c | {"files": c["files"] | {"labels.json": "0" * 64}}, IntegrityError),
    "a file's hash is missing": (
        lambda c: c | {"files": {k: v for k, v in c["files"].items() if k != "model.onnx"}},
        IntegrityError),
    "a check that failed is said to have passed": (
        lambda c: c | {"gate": c["gate"] | {"checks": [
            one | {"value": 9.0} for one in c["gate"]["checks"]]}}, IntegrityError),
    "it is a list": (lambda c: [c], IntegrityError),
}  # fmt: skip


@pytest.mark.parametrize("fault", RECORDS)
def test_a_wrong_manifest_is_not_registered(sound: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(sound, folder)
    change, error = RECORDS[fault]
    edit("manifest.json", change, folder)
    with pytest.raises(error):
        admissible(folder)


@pytest.mark.parametrize("metric", ["drop", "drop_upper95", "parity", "ece", "macro_f1_drop"])
@pytest.mark.parametrize("value", [float("nan"), None])
def test_a_figure_that_is_none_refuses(metric: str, value: float | None) -> None:
    zeros = dict.fromkeys(("drop", "drop_upper95", "macro_f1_drop", "class_drop", "ece"), 0.0)
    good = {**zeros, "bytes": 1, "parity": 1.0, "artifact_sha256": "0" * 64, "detectable_drop": 1.0}
    assert judge(Evidence(**good), LIMITS).passed
    assert not judge(Evidence(**good | {metric: value}), LIMITS).passed


def test_there_are_enough_of_them() -> None:
    assert len(GRAPH_FAULTS) + len(STRUCTURE) + len(QUANTISED) + len(FILES) + len(RECORDS) >= 50
    assert len(KINDS) * len(FORMS) >= 20
