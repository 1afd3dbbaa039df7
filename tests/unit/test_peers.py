"""`stillroom compare-peers`: what the rows say, and a child that answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import compare_peers
from flows.console import Progress
from tasks.errors import UnavailableError, UsageError
from tasks.evaluation.peers import Peer, peers_markdown, verdict
from tasks.release.servable import SERVING_FILES, Servable, file_bytes
from tests.conftest import ROOT
from tests.tiny_bundle import make_bundle

LABELS = np.arange(100) % 2


def peer(name: str, right: int, size: int, ms: float) -> Peer:
    """A peer that has the first texts right."""
    answers = np.where(np.arange(100) < right, LABELS, 1 - LABELS)
    return Peer(name, 4.0 * np.eye(2)[answers], size, np.array([ms, ms, 4 * ms]))


OURS = peer("stillroom", 90, 100, 1.0)


def test_a_row_by_hand() -> None:
    row = OURS.row(LABELS)
    assert row["quality"]["accuracy"] == 0.9
    assert row["latency_ms"]["p50"] == 1.0
    assert row["throughput_per_s"] == pytest.approx(500.0)
    schema = json.loads((ROOT / "infra/schemas/peers.schema.json").read_text("utf-8"))
    jsonschema.validate({"rows": [row]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"rows": [row | {"surprise": 1}]}, schema)


def test_who_is_near_and_who_is_faster() -> None:
    others = [peer("near", 92, 2000, 20.0), peer("far", 95, 9000, 30.0), peer("fast", 70, 50, 0.5)]
    rows = [one.row(LABELS) for one in (OURS, *others)]
    assert verdict(rows) == [
        "near: +2.00 points (within two points), 20.0× our bytes, 20.0× our p50",
        "fast: -20.00 points (further off), 0.5× our bytes, 0.5× our p50",
    ]
    assert verdict(rows[:1]) == ["no peer is within two points of ours or faster"]
    page = peers_markdown(rows, "test", 100)
    assert page.index("| far |") < page.index("| near |") < page.index("| stillroom |")


@pytest.mark.parametrize("script", ["stillroom", "onnxruntime_fp32"])
def test_a_child_answers_as_the_bundle(tmp_path: Path, script: str) -> None:
    bundle = make_bundle(tmp_path / "candidate")
    shutil.copytree(bundle, tmp_path / "servable")
    command = [sys.executable, str(compare_peers.SCRIPTS / f"{script}.py")]
    env = {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "build", str(tmp_path)], env=env, check=True, capture_output=True)
    process = subprocess.Popen([*command, "serve", str(tmp_path)], env=env, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    one = compare_peers.Child(script, process, tmp_path)
    texts = ["where is my card?", "what is the exchange rate", "lost"]
    logits, ms = one.ask(texts)
    expected = np.concatenate([Servable(bundle).logits([text]) for text in texts])
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert ms.shape == (3,)
    assert (ms > 0).all()
    assert one.file_bytes == file_bytes(bundle)
    assert sorted(p.name for p in (tmp_path / "artifact").iterdir()) == list(SERVING_FILES)
    process.kill()
    process.wait()
    with pytest.raises(UnavailableError, match="found no answer"):
        one.ask(texts)


def test_a_peer_that_fails_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path / "home"))
    bundle = make_bundle(tmp_path / "run/data/models/quantize")
    for name in ("teacher_servable", "baseline"):
        shutil.copytree(bundle, tmp_path / "run/data/models" / name)
    (tmp_path / "run/data/models/teacher_servable/model.onnx").write_bytes(b"cut off")
    (tmp_path / "run/data/prepared").mkdir()
    texts = ["where is my card?", "what is the exchange rate", "lost"] * 3
    labels = np.arange(9) % 3
    table = pa.table({"text": texts, "label": labels})
    for split in ("train", "validation"):
        pq.write_table(table, tmp_path / f"run/data/prepared/{split}.parquet")
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "run/params.yaml")
    room = compare_peers.Room.of(tmp_path / "run", "validation")
    found, lost = compare_peers.measure(room, ["stillroom", "onnxruntime-fp32"], Progress())
    assert [one.name for one in found] == ["stillroom"]
    assert found[0].row(labels)["quality"]["accuracy"] == 1.0
    assert list(lost) == ["onnxruntime-fp32"]
    assert "found no answer" in str(lost["onnxruntime-fp32"])
    page = peers_markdown([found[0].row(labels)], "validation", 9, missing=list(lost))
    assert "- onnxruntime-fp32: could not be measured" in page
    (tmp_path / "run/data/models/quantize/model.onnx").write_bytes(b"cut off")
    with pytest.raises(UnavailableError):  # without ours there is nothing to compare with
        compare_peers.measure(room, ["stillroom", "onnxruntime-fp32"], Progress())


def test_wrong_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found 'olive', expected one of stillroom"):
        compare_peers.run(tmp_path, peers=["olive"])
    with pytest.raises(UsageError, match="found 'train', expected one of test, validation"):
        compare_peers.run(tmp_path, split="train")
    with pytest.raises(UsageError, match="expected a finished run"):
        compare_peers.Room.of(tmp_path, "test")
    with pytest.raises(UsageError, match="found --recipe and --workspace"):
        compare_peers.run(tmp_path, recipe="smoke")


def test_a_recipe_has_its_own_run_and_its_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path))
    page = tmp_path / "page.md"
    page.write_text("<!-- peers:begin -->\n<!-- peers:end -->\n", "utf-8")
    with pytest.raises(UsageError, match="peers-smoke:begin"):
        compare_peers.run(recipe="smoke", split="validation", write=page)
    with pytest.raises(UsageError, match="workspaces/smoke-") as caught:
        compare_peers.run(recipe="smoke", split="validation")
    assert caught.value.next_command == "stillroom compress --recipe smoke"


def test_every_peer_has_a_script_and_pins_are_exact() -> None:
    for script in compare_peers.PEERS.values():
        assert (compare_peers.SCRIPTS / f"{script}.py").is_file()
    for pins in compare_peers.SCRIPTS.glob("*.txt"):
        assert pins.stem in compare_peers.PEERS.values()
        lines = [line for line in pins.read_text("utf-8").splitlines() if line[:1] not in ("#", "")]
        assert len(lines) > 5
        assert all("==" in line and "/" not in line for line in lines)
