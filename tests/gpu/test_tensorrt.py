"""What only a GPU can show. On a machine with one: ``pip install -e '.[gpu]' && pytest tests/gpu``.

Skipped where there is none, so nothing here is claimed of a machine that has not run it; where
there is one and something else is missing, they fail.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from tasks.quantization.export import export_onnx
from tasks.quantization.readiness import not_ready
from tasks.runtimes import tensorrt
from tasks.runtimes.interface import load
from tests.tiny_models import PIECES, tiny
from tests.unit.test_quantization import GPU, made

pytestmark = pytest.mark.skipif(
    not Path("/proc/driver/nvidia/version").exists(), reason="no NVIDIA GPU"
)


@pytest.fixture(autouse=True)
def able() -> None:
    """A GPU without its packages has shown nothing."""
    assert tensorrt.missing() is None


SHAPES = [(1, 2), (1, 9), (1, 16), (2, 5), (8, 16), (64, 16)]
SCHEMES = ["none", "half", "static"]
FAR = {"none": 2e-3, "half": 2e-2, "static": 0.1}
"""Largest difference in logits, of their largest."""


def batch(shape: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and a mask with padding at the end of every second row."""
    ids = np.random.default_rng(seed).integers(5, PIECES, shape, dtype=np.int64)
    mask = np.ones(shape, np.int64)
    mask[1::2, shape[1] // 2 + 1 :] = 0
    return ids, mask


@pytest.mark.parametrize("kind", ["bert", "mpnet", "llama"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_engine_answers_as_onnx_runtime(kind: str, scheme: str, tmp_path: Path) -> None:
    graph = tmp_path / "float.onnx"
    export_onnx(tiny(kind), graph, max_length=16)
    path = made(graph, tmp_path, GPU, scheme=scheme)
    assert not_ready(onnx.load(path)) == []
    engine, reference = tensorrt.TensorRtRuntime(path, folder=tmp_path / "engines"), load(path)
    for seed, shape in enumerate(SHAPES):
        ids, mask = batch(shape, seed)
        found, expected = engine.run(ids, mask), reference.run(ids, mask)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=FAR[scheme] * np.abs(expected).max())
    assert engine.describe()["runtime"] == "tensorrt"
    engine.close()


def test_an_engine_is_built_once(tmp_path: Path) -> None:
    graph, kept = tmp_path / "float.onnx", tmp_path / "engines"
    export_onnx(tiny("bert"), graph, max_length=16)
    started = time.monotonic()
    first = tensorrt.TensorRtRuntime(graph, folder=kept)
    built = time.monotonic() - started
    (engine,) = kept.glob("*.engine")
    (timings,) = kept.glob("timing-*.cache")
    assert timings.stat().st_size > 0
    stamp, ids = engine.stat().st_mtime_ns, batch((1, 9), 0)
    answer = first.run(*ids)
    first.close()
    started = time.monotonic()
    again = tensorrt.TensorRtRuntime(graph, folder=kept)
    assert time.monotonic() - started < built
    assert engine.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(again.run(*ids), answer)
    again.close()


def test_an_engine_of_another_version_is_not_used(tmp_path: Path) -> None:
    graph, kept = tmp_path / "float.onnx", tmp_path / "engines"
    export_onnx(tiny("bert"), graph, max_length=16)
    tensorrt.TensorRtRuntime(graph, folder=kept).close()
    (engine,) = kept.glob("*.engine")
    shutil.move(engine, engine.with_name(engine.name.replace("-trt", "-trt0.")))
    tensorrt.TensorRtRuntime(graph, folder=kept).close()
    assert engine.is_file(), "built anew under its own name"


def test_an_engine_that_does_not_load_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = tmp_path / "float.onnx"
    export_onnx(tiny("bert"), graph, max_length=16)
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path))
    load(graph, runtime="tensorrt").close()
    (engine,) = (tmp_path / "engines").glob("*.engine")
    engine.write_bytes(b"cut off")
    assert load(graph, runtime="tensorrt").describe()["runtime"] == "onnxruntime"
    assert load(graph, runtime="tensorrt").describe()["runtime"] == "tensorrt", "built anew"
