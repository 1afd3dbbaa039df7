"""The stages finetune and quantize on a tiny model, with exits and without, and the curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from tasks import finetune, quantize, validate
from tasks.modeling.checkpoint import EXITS_FILE, save_checkpoint
from tasks.params import overlay, parse, read_yaml
from tasks.paths import FINETUNED, PRUNED, QUANTIZED, TEACHER_LOGITS, TEST, TRAIN, VALIDATION
from tasks.problems.classification import pad, read_split
from tasks.release.servable import SERVING_FILES, Servable, serving_files
from tasks.schema import Params
from tests.tiny_models import CLASSES, PIECES, tiny
from tests.unit.test_exits import word_level

ROOT = Path(__file__).resolve().parents[2]
LABELS = [f"l{n}" for n in range(CLASSES)]


def write_split(path: Path, model: nn.Module, count: int, seed: int) -> None:
    """Texts of random pieces with the label that the model gives."""
    draw = np.random.default_rng(seed)
    rows = [draw.integers(2, PIECES, draw.integers(3, 9)).tolist() for _ in range(count)]
    ids, mask = pad(rows, 0)
    with torch.no_grad():
        labels = model(input_ids=ids, attention_mask=mask).logits.argmax(-1).numpy()
    texts = [" ".join(f"w{n}" for n in row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts, "label": labels}), path)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What finetune and quantize read, up to the pruned model."""
    monkeypatch.chdir(tmp_path)
    model, parent = tiny("bert"), tmp_path / "parent"
    parent.mkdir()
    (parent / "tokenizer.json").write_text(word_level().to_str())
    (parent / "labels.json").write_text(json.dumps(LABELS))
    save_checkpoint(model, PRUNED, parent=parent, step={"stage": "prune"})
    for path, count, seed in ((TRAIN, 300, 1), (VALIDATION, 60, 2), (TEST, 60, 3)):
        write_split(path, model, count, seed)
    TEACHER_LOGITS.mkdir(parents=True)
    none = pa.table({"text": pa.array([], pa.string())})
    pq.write_table(none, TEACHER_LOGITS / "extra.parquet")
    return tmp_path


def params(layers: list[int]) -> Params:
    changes: dict[str, Any] = {
        "finetune": {"enabled": False},
        "exits": {"layers": layers, "confidence": 0.8},
        "quantize": {"max_loss": 100.0, "max_flips": 100.0, "aware": {"mode": "never"}},
        "data": {"max_length": 16},
    }
    return parse(overlay(read_yaml(ROOT / "params.yaml"), changes))


def test_with_exits_a_text_goes_as_deep_as_it_has_to(workspace: Path) -> None:
    chosen = params([1, 2])
    trained = finetune.main(chosen)["exits"]
    assert [row["layer"] for row in trained] == [1, 2]
    assert trained[1]["kl"] < trained[0]["kl"]
    found = quantize.main(chosen)
    assert found["exits"]["confidence"] == 0.8
    assert len(found["exits"]["temperatures"]) == 2
    assert found["exits"]["accuracy"] == pytest.approx(found["validation"]["accuracy"])
    names = tuple(sorted(path.name for path in QUANTIZED.iterdir()))
    assert serving_files(QUANTIZED) == names == tuple(sorted({*SERVING_FILES, "model.1.onnx",
                                                              "model.2.onnx"}))  # fmt: skip
    assert found["file_bytes"] == sum(path.stat().st_size for path in QUANTIZED.iterdir())
    served, texts = Servable(QUANTIZED), read_split(VALIDATION).texts
    depths = [int(served.depths([text])[0]) for text in texts]
    share = [depths.count(depth) / len(texts) for depth in (1, 2, 3)]
    assert found["exits"]["share"] == pytest.approx(share)
    assert 0 < share[0] < 1
    rows = validate.depth_curve(read_split(TEST), LABELS, chosen.evaluation)["adaptive_depth"]
    assert [row["confidence"] for row in rows if row["served"]] == [0.8]
    assert rows[0]["accuracy"] < rows[-1]["accuracy"]
    assert rows[0]["latency_ms"] < rows[-1]["latency_ms"]


def test_without_them_nothing_of_it_is_there(workspace: Path) -> None:
    plain = params([])
    assert set(finetune.main(plain)) == {"enabled", "file_bytes"}
    assert not (FINETUNED / EXITS_FILE).exists()
    assert {path.name for path in FINETUNED.iterdir()} == {path.name for path in PRUNED.iterdir()}
    assert "exits" not in quantize.main(plain)
    assert tuple(sorted(path.name for path in QUANTIZED.iterdir())) == SERVING_FILES
    assert list(json.loads((QUANTIZED / "serving.json").read_text())) == [
        "format", "problem", "runtime", "model", "precision", "weight_bits", "profile",
        "max_length", "pad_id", "pad_token",
    ]  # fmt: skip
    assert validate.depth_curve(read_split(TEST), LABELS, plain.evaluation) == {}
