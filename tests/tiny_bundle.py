"""A bundle of a few kilobytes that is real: an ONNX graph, a tokenizer, a manifest.

The model counts telling words: every label has its own, and a text's logits are their
mean. Its weights carry noise that depends on the seed, so that two seeds give the same
answers from different bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tasks.files import file_sha256
from tasks.release import registry
from tasks.release.history import Registered
from tasks.release.servable import artifact_sha256, file_bytes, file_hashes, write_servable

LABELS = ("card_arrival", "exchange_rate", "lost_card")
WORDS = {
    "card_arrival": ("where", "arrive", "delivery"),
    "exchange_rate": ("rate", "exchange", "dollars"),
    "lost_card": ("lost", "stolen", "missing"),
}
COMMON = ("[PAD]", "[UNK]", "is", "my", "card", "the", "what", "i", "?")
TEXT, LABEL = "where is my card?", "card_arrival"
REPOSITORY = Path(__file__).resolve().parent.parent


def make_bundle(
    folder: Path,
    *,
    seed: int = 0,
    passed: bool = True,
    name: str = "tiny",
    layers: int = 0,
    called: Sequence[str] = (),
    profile: str = "cpu-avx2",
) -> Path:
    """Write a bundle whose hash depends on `seed`; its verdict is `passed`.

    Each of `layers` multiplies by a matrix of 512 x 512: the answers stay, the time does not.
    `called` are other names for its labels.
    """
    vocabulary = [*COMMON, *(word for label in LABELS for word in WORDS[label])]
    write_servable(
        folder,
        labels=called or LABELS,
        serving={
            "problem": "classification",
            "runtime": "onnxruntime",
            "model": "model.onnx",
            "max_length": 16,
            "pad_id": 0,
            "pad_token": "[PAD]",
            "profile": profile,
        },
        tokenizer_json=_tokenizer(vocabulary).to_str(),
    )
    onnx.save(_graph(vocabulary, seed, layers), folder / "model.onnx")
    (folder / "MODEL_CARD.md").write_text(f"# {name}\n")
    write_manifest(folder, passed=passed, name=name)
    return folder


def register_tiny(
    tmp_path: Path, seed: int, *, release: Mapping[str, Any], name: str = "tiny", layers: int = 0
) -> Registered:
    """Register the bundle of a seed as a run would, with what its ``release.json`` says."""
    bundle = tmp_path / f"bundle-{seed}"
    if not bundle.exists():
        make_bundle(bundle, seed=seed, name=name, layers=layers)
    documents = make_documents(tmp_path / f"documents-{seed}", bundle)
    return registry.register(bundle, name=name, documents=documents, release=release, run_id=None)


def write_manifest(folder: Path, *, passed: bool = True, name: str = "tiny") -> None:
    """Write the manifest of the files that lie in a folder."""
    hashes = file_hashes(folder)
    digest = artifact_sha256(hashes)
    quality = {"accuracy": 0.92, "macro_f1": 0.91, "nll": 0.3, "ece": 0.02}
    checks = [{"metric": "drop", "kind": "max", "value": 0.5, "limit": 2.0, "passed": passed}]
    manifest: dict[str, Any] = {
        "format": 1,
        "model": name,
        "artifact_sha256": digest,
        "file_bytes": file_bytes(folder),
        "files": hashes,
        "profile": json.loads((folder / "serving.json").read_text())["profile"],
        "params": {"seed": 13},
        "quality": quality,
        "teacher_quality": quality,
        "gate": {
            "passed": passed,
            "checks": checks,
            "artifact_sha256": digest,
            "detectable_drop": 1.1,
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def make_documents(folder: Path, bundle: Path) -> dict[str, Path]:
    """What a run leaves beside its bundle, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    gate = json.loads((bundle / "manifest.json").read_text())["gate"]
    contents = {
        "gate.json": json.dumps(gate),
        "params.yaml": "seed: 13\n",
        "dvc.lock": "schema: '2.0'\n",
        "summary.json": json.dumps({"primary": "accuracy"}),
        "summary.md": "# Report\n",
    }
    for name, text in contents.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in contents}


def flip_byte(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    assert file_sha256(file)


def stillroom(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [str(Path(sys.executable).parent / "stillroom"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.fixture(scope="session")
def template_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes seconds, copying one does not."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow.tracking.client import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    uri = f"sqlite:///{file}"
    MlflowClient(tracking_uri=uri, registry_uri=uri).search_registered_models()
    return file


@pytest.fixture
def registry_home(template_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``STILLROOM_HOME`` of its own with an empty registry."""
    place = tmp_path / "home"
    (place / "mlflow").mkdir(parents=True)
    shutil.copyfile(template_store, place / "mlflow" / "mlflow.db")
    monkeypatch.setenv("STILLROOM_HOME", str(place))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return place


def _tokenizer(vocabulary: list[str]) -> Tokenizer:
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _graph(vocabulary: list[str], seed: int, layers: int) -> onnx.ModelProto:
    noise = np.random.default_rng(seed)
    embedding = np.zeros((len(vocabulary), len(LABELS)), dtype=np.float32)
    for column, label in enumerate(LABELS):
        for word in WORDS[label]:
            embedding[vocabulary.index(word), column] = 9.0
    head = np.eye(len(LABELS)) + noise.normal(0.0, 0.01, (len(LABELS), len(LABELS)))
    constants = {
        "embedding": embedding,
        "head": head.astype(np.float32),
        "bias": np.zeros(len(LABELS), dtype=np.float32),
        "words": np.array([1], dtype=np.int64),
        "last": np.array([2], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["vectors", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "words"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "words"], ["length"], keepdims=1),
        helper.make_node("Div", ["total", "length"], ["mean"]),
        helper.make_node("Gemm", ["mean", "head", "bias"], ["logits"]),
    ]
    if layers:
        nodes[-1].output[0] = "told"
        constants |= _weights_of_layers(noise)
        nodes += _layers(layers)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _weights_of_layers(noise: np.random.Generator) -> dict[str, np.ndarray]:
    """In, through as often as there are layers, and out, so faintly that no answer changes."""
    wide, few = 512, len(LABELS)
    return {
        "widen": noise.normal(0.0, 1.0, (few, wide)).astype(np.float32),
        "through": noise.normal(0.0, wide**-0.5, (wide, wide)).astype(np.float32),
        "narrow": noise.normal(0.0, 1e-6, (wide, few)).astype(np.float32),
    }


def _layers(number: int) -> list[onnx.NodeProto]:
    nodes = [helper.make_node("MatMul", ["mean", "widen"], ["wide0"])]
    for layer in range(number):
        nodes.append(helper.make_node("MatMul", [f"wide{layer}", "through"], [f"sum{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"sum{layer}"], [f"wide{layer + 1}"]))
    nodes.append(helper.make_node("MatMul", [f"wide{number}", "narrow"], ["faint"]))
    nodes.append(helper.make_node("Add", ["told", "faint"], ["logits"]))
    return nodes
