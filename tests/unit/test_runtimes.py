"""Engines answer alike, the right one is chosen, and TensorRT's names are those it has."""

from __future__ import annotations

import ast
import logging
import re
from dataclasses import replace
from importlib.metadata import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from tasks.hardware import PROFILES
from tasks.quantization.choice import (
    MARGIN,
    TRAINED,
    Build,
    better,
    build,
    choose,
    form_for,
)
from tasks.quantization.export import export_onnx
from tasks.quantization.fidelity import Fidelity, logits_one_by_one
from tasks.quantization.layers import weighted_nodes
from tasks.quantization.readiness import not_ready
from tasks.quantization.search import Exam
from tasks.runtimes import interface, openvino, tensorrt
from tasks.runtimes.interface import load, missing
from tests.tiny_models import tiny
from tests.unit.test_quantization import CPU, GPU, IDS, made, settings

BATCH = np.array([[5, 6, 7, 8, 9], [9, 8, 7, 0, 0]], dtype=np.int64)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=np.int64)
FORMS: list[dict[str, Any]] = [
    {"scheme": "none"}, {"scheme": "static"}, {"scheme": "half"}, {"scheme": "bf16"},
    {"scheme": "weight_only"},
]  # fmt: skip


@pytest.fixture(scope="module", params=["bert", "llama"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "float.onnx"
    export_onnx(tiny(request.param), path, max_length=16)
    return path


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form["scheme"])
def test_openvino_answers_as_onnx_runtime(
    graph: Path, form: dict[str, Any], tmp_path: Path
) -> None:
    path = made(graph, tmp_path, CPU, **form)
    ours = load(path, runtime="openvino", weight_bits=7)
    assert ours.describe()["runtime"] == "openvino"
    found, expected = ours.run(BATCH, MASK), load(path, weight_bits=7).run(BATCH, MASK)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    off = {"static": 0.05, "half": 5e-3}.get(form["scheme"], 1e-4)  # int8 products round apart
    np.testing.assert_allclose(found, expected, atol=off * np.abs(expected).max())
    one = ours.run(BATCH[1:, :3], MASK[1:, :3])  # another shape, the answer of the padded row
    np.testing.assert_allclose(one[0], found[1], atol=off * np.abs(expected).max())
    first = found.copy()
    ours.run(BATCH[:, ::-1].copy(), MASK)
    np.testing.assert_array_equal(found, first)  # an answer is no view of the engine's memory
    ours.close()


def test_bfloat16_halves_the_bytes(graph: Path, tmp_path: Path) -> None:
    path = made(graph, tmp_path, CPU, scheme="bf16")
    wide = {t.name: numpy_helper.to_array(t) for t in onnx.load(graph).graph.initializer}
    small = {t.name: t for t in onnx.load(path).graph.initializer}
    weights = {n.weight for n in weighted_nodes(onnx.load(graph))}
    assert weights
    for name in weights:
        stored = small[f"{name}_bf16"]
        assert stored.data_type == onnx.TensorProto.BFLOAT16
        kept = numpy_helper.to_array(stored).astype(np.float32)
        assert (np.abs(kept - wide[name]) <= 2.0**-8 * np.abs(wide[name])).all()
        bits = wide[name].view(np.uint32).astype(np.uint64)  # to nearest, ties to even, by hand
        by_hand = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)
        np.testing.assert_array_equal(kept, by_hand.view(np.float32))
    answers = [logits_one_by_one(p, IDS[:16], weight_bits=8) for p in (graph, path)]
    assert 0 < np.abs(answers[0] - answers[1]).max() < 0.05


def test_an_engine_that_cannot_run_has_a_stand_in(
    graph: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "missing", lambda: "no NVIDIA GPU")
    with caplog.at_level(logging.WARNING, "stillroom"):
        engine = load(graph, runtime="tensorrt")
    assert engine.describe()["runtime"] == "onnxruntime"
    assert "tensorrt: no NVIDIA GPU: ONNX Runtime answers" in caplog.text
    assert np.isfinite(engine.run(BATCH, MASK)).all()


def test_an_engine_that_breaks_has_a_stand_in(
    graph: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, model: Path, *, threads: int) -> None:
        raise RuntimeError("unsupported")

    monkeypatch.setattr(openvino.OpenVinoRuntime, "__init__", broken)
    assert load(graph, runtime="openvino", weight_bits=7).describe()["runtime"] == "onnxruntime"
    assert "RuntimeError: unsupported" in caplog.text


def test_eight_bits_are_kept_from_openvino_where_they_overflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interface, "saturates", lambda: True)
    assert "overflow" in str(missing("openvino", weight_bits=8))
    assert missing("openvino", weight_bits=7) is None
    monkeypatch.setattr(interface, "saturates", lambda: False)
    assert missing("openvino", weight_bits=8) is None


# which engine serves


CONFIG = settings()


FIDELITY = Fidelity(accuracy=0.9, kl=0.01, flip_rate=0.005, drop=0.2)


@pytest.mark.parametrize(
    ("drop", "flips", "size", "first"),
    [
        (0.1, 0.005, 50, True),
        (0.2, 0.005, 9, True),  # as much lost, in fewer bytes
        (0.2, 0.005, 10, False),
        (0.3, 0.005, 9, False),
        (0.0, 0.02, 9, False),  # more flips than the budget takes
    ],
)
def test_what_training_with_simulated_int8_gave_serves_where_it_is_better(
    tmp_path: Path, drop: float, flips: float, size: int, first: bool
) -> None:
    (tmp_path / "served.onnx").write_bytes(bytes(10))
    (tmp_path / "trained.onnx").write_bytes(bytes(size))
    record = {**FIDELITY.as_dict(), "tried": [{"what": "dynamic"}], "kept_float": ["a"]}
    served = Build("onnxruntime", CONFIG, CPU, tmp_path / "served.onnx", record, True, None)
    fidelity = Fidelity(accuracy=0.9, kl=0.01, flip_rate=flips, drop=drop)
    trained = served.retrained(fidelity, tmp_path / "trained.onnx")
    assert trained.within == (flips < 0.015)
    assert trained.record["kept_float"] == []
    assert trained.as_dict()["scheme"] == "static"
    assert [one["what"] for one in trained.record["tried"]] == ["dynamic", TRAINED]
    assert (better(served, trained) is trained) is first
    lossy = replace(served, within=False)
    assert (better(lossy, trained) is trained) == (trained.within or first or drop == 0.0)


def built(runtime: str, drop: float, within: bool, absent: str | None = None) -> Build:
    record = {"drop": drop}
    return Build(runtime, CONFIG, CPU, Path(runtime), record, within, absent)


def test_the_fastest_that_keeps_the_budget_serves() -> None:
    ours, other = built("onnxruntime", 0.1, True), built("openvino", 0.2, True)
    assert choose([ours, other], {"onnxruntime": 1.0, "openvino": 0.8}) is other
    assert choose([ours, other], {"onnxruntime": 1.0, "openvino": 0.97}) is ours, "noise"
    assert choose([other, ours], {"onnxruntime": 0.97, "openvino": 1.0}) is other, "as listed"
    lossy = built("openvino", 0.9, False)
    assert choose([ours, lossy], {"onnxruntime": 1.0, "openvino": 0.1}) is ours
    worse = built("onnxruntime", 1.5, False)
    assert choose([worse, lossy], {"onnxruntime": 0.1, "openvino": 1.0}) is lossy
    gpu = built("tensorrt", 0.0, True, "no NVIDIA GPU")
    assert choose([gpu, ours], {}) is ours
    assert choose([gpu], {}) is gpu, "what was asked for, unmeasured"


@hypothesis.settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 2), st.booleans(), st.floats(0.01, 10)), min_size=1, max_size=3)
)
def test_a_choice_keeps_the_budget_and_is_nearly_the_fastest(
    rows: list[tuple[float, bool, float]],
) -> None:
    names = interface.NAMES[: len(rows)]
    builds = [built(n, drop, within) for n, (drop, within, _) in zip(names, rows, strict=True)]
    p50 = {n: time for n, (_, _, time) in zip(names, rows, strict=True)}
    chosen = choose(builds, p50)
    kept = [b for b in builds if b.within]
    if kept:
        assert chosen in kept
        assert p50[chosen.runtime] <= min(p50[b.runtime] for b in kept) * MARGIN * (1 + 1e-9)
    else:
        assert chosen.record["drop"] == min(b.record["drop"] for b in builds)


def test_each_engine_gets_the_form_it_has_kernels_for(tmp_path: Path) -> None:
    model = tiny("bert")
    graph = tmp_path / "float.onnx"
    export_onnx(model, graph, max_length=16)
    exact = logits_one_by_one(graph, IDS, weight_bits=8)
    exam = Exam(graph, weighted_nodes(graph, model), IDS, exact.argmax(-1), exact, IDS[:32])
    config = settings(max_loss=100.0, max_flips=100.0)
    builds = {name: build(name, exam, tmp_path / f"{name}.onnx", config, CPU, say=lambda _: None)
              for name in interface.NAMES}  # fmt: skip
    assert {n: b.config.scheme for n, b in builds.items()} == {
        "onnxruntime": "dynamic", "openvino": "static", "tensorrt": "static"}  # fmt: skip
    assert builds["openvino"].record["runtime"] == "openvino"
    assert builds["openvino"].record["kl"] < 0.05
    for name, one in builds.items():
        assert one.within, name
        served = logits_one_by_one(one.model, IDS, weight_bits=7, runtime=one.answered_by)
        assert float((served.argmax(-1) != exact.argmax(-1)).mean()) == one.record["flip_rate"]
    gpu = builds["tensorrt"]
    if gpu.absent:
        assert gpu.as_dict()["answered_by"] == "onnxruntime"
    assert not_ready(onnx.load(gpu.model)) == []
    assert not_ready(onnx.load(builds["openvino"].model)) != [], "asymmetric bytes"
    assert form_for("tensorrt", settings(scheme="half")).scheme == "half"


# what TensorRT takes


def test_a_gpu_profiles_graph_is_ready(graph: Path, tmp_path: Path) -> None:
    assert not_ready(onnx.load(made(graph, tmp_path, GPU, scheme="static"))) == []
    assert not_ready(onnx.load(made(graph, tmp_path, GPU, scheme="half"))) == []


def test_what_is_not_ready_is_named(graph: Path, tmp_path: Path) -> None:
    dynamic = not_ready(onnx.load(made(graph, tmp_path, CPU, scheme="dynamic")))
    assert any(fault.startswith("DynamicQuantizeLinear") for fault in dynamic)
    assert any(fault.startswith("MatMulInteger") for fault in dynamic)
    four = not_ready(onnx.load(made(graph, tmp_path, CPU, scheme="weight_only", bits=4)))
    assert any("com.microsoft::MatMulNBits" in fault for fault in four)
    uneven = not_ready(onnx.load(made(graph, tmp_path, CPU, scheme="static")))
    assert any("a zero point is not 0" in fault or "UINT8" in fault for fault in uneven)


def spoilt(graph: Path, tmp_path: Path, spoil: Any) -> list[str]:
    """What is said of a graph that was ready before."""
    model = onnx.load(made(graph, tmp_path, GPU, scheme="static"))
    spoil(model)
    return not_ready(model)


def test_planted_faults_of_a_pair_are_named(graph: Path, tmp_path: Path) -> None:
    def quantise(model: onnx.ModelProto) -> onnx.NodeProto:
        return next(n for n in model.graph.node if n.op_type == "QuantizeLinear")

    def constant(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    def scale(model: onnx.ModelProto) -> None:
        constant(model, quantise(model).input[1], np.array(-0.1, np.float32))

    def zero(model: onnx.ModelProto) -> None:
        constant(model, quantise(model).input[2], np.array(3, np.int8))

    def unsigned(model: onnx.ModelProto) -> None:
        constant(model, quantise(model).input[2], np.array(0, np.uint8))

    def bare(model: onnx.ModelProto) -> None:
        node = quantise(model)
        after = next(n for n in model.graph.node if node.output[0] in n.input)
        used = next(n for n in model.graph.node if after.output[0] in n.input)
        used.input[list(used.input).index(after.output[0])] = node.output[0]

    def old(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 8

    def foreign(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Attention", ["x"], ["y"], domain="com.microsoft"))

    for spoil, said in ((scale, "a scale is not positive"), (zero, "a zero point is not 0"),
                        (unsigned, "found UINT8"), (bare, "takes bytes"), (old, "opset 8"),
                        (foreign, "com.microsoft::Attention")):  # fmt: skip
        found = spoilt(graph, tmp_path, spoil)
        assert any(said in fault for fault in found), (said, found)


# TensorRT without a GPU


def attributes(variables: set[str]) -> set[str]:
    """Names that the runtime's source asks of the objects in some variables, and of theirs."""
    tree = ast.parse(Path(tensorrt.__file__).read_text("utf-8"))
    found = set()
    for node in ast.walk(tree):
        inner, names = node, []
        while isinstance(inner, ast.Attribute | ast.Call):
            if isinstance(inner, ast.Attribute):
                names.append(inner.attr)
                inner = inner.value
            else:
                inner = inner.func
        if not isinstance(inner, ast.Name):
            continue
        if inner.id in variables:
            found |= set(names)
        elif inner.id == "self" and names and names[-1].strip("_") in variables:
            found |= set(names[:-1])
    return found


def test_the_names_that_tensorrt_is_called_by_are_those_of_its_bindings() -> None:
    """Its bindings install without its libraries: each name has to be a word of theirs."""
    binary = next(p for p in files("tensorrt-cu13-bindings") or [] if p.name == "tensorrt.so")
    words = set(re.findall(rb"[A-Za-z_0-9]{3,}", Path(str(binary.locate())).read_bytes()))
    asked = attributes({"trt", "builder", "network", "parser", "config", "profile", "context",
                        "engine", "runtime"})  # fmt: skip
    asked -= {"cudaError_t", "cudaSuccess", "cudaGetDeviceCount"}  # CUDA's, of the next test
    assert {"build_serialized_network", "execute_async_v3", "STRONGLY_TYPED", "OnnxParser",
            "deserialize_cuda_engine", "set_optimization_profile_async"} <= asked  # fmt: skip
    assert not {name for name in asked if name.encode() not in words}
    assert b"kINT8_WEAK" not in words


def test_the_names_that_cuda_is_called_by_are_its_own() -> None:
    assert find_spec("cuda.bindings")
    from cuda.bindings import runtime

    asked = attributes({"cuda"}) | {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"}
    kinds = set(runtime.cudaMemcpyKind.__members__) | set(runtime.cudaError_t.__members__)
    assert {"cudaMalloc", "cudaFree", "cudaMemcpyAsync", "cudaStreamSynchronize"} <= asked
    assert not {name for name in asked if not hasattr(runtime, name) and name not in kinds}


def test_an_engine_belongs_to_a_file_a_gpu_and_a_version() -> None:
    one = tensorrt.engine_name("a" * 64, "NVIDIA H100 PCIe", (9, 0), "11.4.0.106")
    assert one == "aaaaaaaaaaaaaaaa-nvidia-h100-pcie-sm90-trt11.4.0.106.engine"
    others = {
        tensorrt.engine_name("b" * 64, "NVIDIA H100 PCIe", (9, 0), "11.4.0.106"),
        tensorrt.engine_name("a" * 64, "NVIDIA H200", (9, 0), "11.4.0.106"),
        tensorrt.engine_name("a" * 64, "NVIDIA H100 PCIe", (10, 0), "11.4.0.106"),
        tensorrt.engine_name("a" * 64, "NVIDIA H100 PCIe", (9, 0), "11.5.0"),
    }
    assert len({one, *others}) == 5


@pytest.mark.parametrize("scheme", ["none", "half", "static", "dynamic", "weight_only"])
def test_an_engine_is_for_no_more_than_the_position_table(
    graph: Path, tmp_path: Path, scheme: str
) -> None:
    model = onnx.load(made(graph, tmp_path, scheme=scheme))
    longest = tensorrt.longest_of(model)
    assert longest == 16
    for least, likely, most in tensorrt.profiles(longest):
        assert least <= likely <= most
        assert most[1] == longest
    ids = np.full((1, longest), 3, np.int64)
    assert np.isfinite(load(tmp_path / "made.onnx").run(ids, np.ones_like(ids))).all()


def test_profiles_of_gpus_ask_for_symmetric_bytes() -> None:
    assert all(p.symmetric for name, p in PROFILES.items() if name.startswith("gpu"))
    assert torch.cuda.is_available() or tensorrt.missing() is not None
