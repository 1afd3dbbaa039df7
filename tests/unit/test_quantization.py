"""Every served form of a real small model, and what is said of its cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tasks import processor, schema
from tasks.hardware import PROFILES, profile_of
from tasks.modeling.architecture import layers_of, linear
from tasks.params import overlay, parse, read_yaml
from tasks.quantization.export import export_onnx
from tasks.quantization.fidelity import compare, divergence, first_divergence, logits_one_by_one
from tasks.quantization.forms import precision, weight_bits, write_form
from tasks.quantization.layers import weighted_nodes
from tasks.quantization.mixed import Cost, spare_fewest
from tasks.quantization.search import Exam, quantise
from tasks.release.foreign import foreign
from tasks.runtimes.onnx import OnnxRuntime
from tests.tiny_models import PIECES, tiny

ROOT = Path(__file__).resolve().parents[2]
CPU, GPU = PROFILES["cpu-avx2"], PROFILES["gpu-sm90"]
GENERATOR = torch.Generator().manual_seed(3)
IDS = [torch.randint(5, PIECES, (n,), generator=GENERATOR).tolist() for n in (9, 6, 3, 12) * 16]


def settings(**changes: Any) -> schema.Quantize:
    """`quantize` of params.yaml with changes."""
    return parse(overlay(read_yaml(ROOT / "params.yaml"), {"quantize": changes})).quantize


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny("bert")


@pytest.fixture(scope="module")
def graph(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "float.onnx"
    export_onnx(model, path, max_length=16)
    return path


@pytest.fixture(scope="module")
def exact(graph: Path) -> np.ndarray:
    return logits_one_by_one(graph, IDS, weight_bits=8)


def made(graph: Path, folder: Path, profile: Any = CPU, **changes: Any) -> Path:
    path = folder / "made.onnx"
    write_form(graph, path, settings(**changes), profile, calibration=IDS[:32])
    return path


FORMS = {
    "dynamic": ({}, CPU, 0.05),
    "minmax": ({"scheme": "static"}, CPU, 0.05),
    "entropy": ({"scheme": "static", "calibration": {"method": "entropy"}}, CPU, 0.1),
    "percentile": ({"scheme": "static", "calibration": {"method": "percentile"}}, CPU, 0.05),
    "symmetric": ({"scheme": "static"}, GPU, 0.05),
    "int8 weights": ({"scheme": "weight_only"}, CPU, 0.02),
    "int4 weights": ({"scheme": "weight_only", "bits": 4}, CPU, 0.2),
    "half": ({"scheme": "half"}, CPU, 0.005),
    "none": ({"scheme": "none"}, CPU, 1e-6),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_answers_as_the_float_model(
    graph: Path, exact: np.ndarray, tmp_path: Path, name: str
) -> None:
    changes, profile, bound = FORMS[name]
    config = settings(**changes)
    path = made(graph, tmp_path, profile, **changes)
    found = logits_one_by_one(path, IDS, weight_bits=weight_bits(config, profile))
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert error < bound
    assert (error > 0) == (name != "none")
    again = tmp_path / "again"
    again.mkdir()
    assert made(graph, again, profile, **changes).read_bytes() == path.read_bytes()


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("scheme", ["dynamic", "static", "weight_only"])
def test_tables_have_eight_bits(graph: Path, tmp_path: Path, scheme: str) -> None:
    found = tensors(made(graph, tmp_path, scheme=scheme)).values()
    assert [a.dtype.itemsize for a in found if a.shape == (PIECES, 32)] == [1]
    whole = tensors(made(graph, tmp_path, scheme=scheme, embeddings=False)).values()
    assert [a.dtype.itemsize for a in whole if a.shape == (PIECES, 32)] == [4]


def test_a_table_is_its_bytes_times_one_scale(graph: Path, tmp_path: Path) -> None:
    before = tensors(graph)["model.bert.embeddings.word_embeddings.weight"]
    after = tensors(made(graph, tmp_path, scheme="static"))
    (small,) = [a for a in after.values() if a.shape == before.shape]
    scale = np.abs(before).max() / 127
    np.testing.assert_allclose(small * scale, before, atol=scale / 2 * 1.0001)


def test_symmetric_pairs_have_zero_points_of_zero(graph: Path, tmp_path: Path) -> None:
    for profile, all_zero in ((GPU, True), (CPU, False)):
        path = made(graph, tmp_path, profile, scheme="static")
        kept = tensors(path)
        nodes = onnx.load(path).graph.node
        points = {n.input[2] for n in nodes if n.op_type == "QuantizeLinear"}
        assert points
        assert (not any(kept[name].any() for name in points)) == all_zero
        assert {kept[n].dtype for n in points} == {np.dtype(np.int8 if all_zero else np.uint8)}
        assert not [n for n in nodes if n.op_type.startswith("DynamicQuantize")]


def test_reduced_range_keeps_weights_within_seven_bits(graph: Path, tmp_path: Path) -> None:
    def widest(profile: Any, scheme: str) -> int:
        kept = tensors(made(graph, tmp_path, profile, scheme=scheme))
        matrices = [a for name, a in kept.items() if a.dtype == np.int8 and a.ndim == 2
                    and "embedding" not in name and a.shape[0] != PIECES]  # fmt: skip
        return max(int(np.abs(a.astype(int)).max()) for a in matrices)

    for scheme in ("dynamic", "static"):
        assert widest(CPU, scheme) <= 64 < widest(PROFILES["cpu-avx512-vnni"], scheme)


def test_four_bits_are_smaller_than_eight(graph: Path, tmp_path: Path) -> None:
    sizes = [made(graph, tmp_path, scheme="weight_only", bits=bits).stat().st_size
             for bits in (8, 4)]  # fmt: skip
    assert sizes[1] < sizes[0]


def test_an_outlier_widens_minmax_alone(model: torch.nn.Module, tmp_path: Path) -> None:
    """One text in three hundred has a piece whose vector is a hundred times too long."""
    outlier = tiny("bert")
    with torch.no_grad():
        linear(layers_of(outlier)[0], "intermediate.dense").bias[0] = 50.0
    path = tmp_path / "float.onnx"
    export_onnx(outlier, path, max_length=16)
    scales = {}
    for method in ("minmax", "percentile"):
        target = tmp_path / f"{method}.onnx"
        config = settings(scheme="static", calibration={"method": method, "percentile": 90.0})
        write_form(path, target, config, CPU, calibration=IDS[:32])
        found = tensors(target)
        scales[method] = max(float(v) for k, v in found.items() if k.startswith("gelu_scale"))
    assert scales["percentile"] < scales["minmax"] / 2


def test_nodes_are_called_as_their_modules(model: torch.nn.Module, graph: Path) -> None:
    names = {node.layer for node in weighted_nodes(graph, model)}
    modules = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert modules < names
    assert names - modules == {"bert.embeddings.word_embeddings"} | {
        name for name in names if "position" in name or name.startswith("node_embedding")
    }


def test_what_is_kept_float_stays_as_it_was(
    model: torch.nn.Module, graph: Path, tmp_path: Path
) -> None:
    nodes = weighted_nodes(graph, model)
    spared = next(n for n in nodes if n.layer == "classifier")
    for scheme in ("dynamic", "static"):
        path = tmp_path / f"{scheme}.onnx"
        write_form(graph, path, settings(scheme=scheme), CPU, calibration=IDS[:32],
                   keep_float=[spared.node])  # fmt: skip
        named = {n.name: n for n in onnx.load(path).graph.node}
        kept = named.get(spared.node) or named[f"{spared.node}_MatMul"]
        weight = tensors(path)[kept.input[1]]
        weight = weight if kept.op_type == "Gemm" else weight.T
        np.testing.assert_array_equal(weight, model.classifier.weight.detach().numpy())


def test_costs_by_hand() -> None:
    exact = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    found = np.log(np.array([[0.25, 0.75], [0.9, 0.1]]))
    by_hand = (0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2
    assert divergence(exact, found) == pytest.approx(by_hand)
    assert np.isnan(divergence(exact, np.full((2, 2), np.nan)))
    exact, found = np.eye(4), np.eye(4)[[0, 1, 2, 2]]
    judged = compare(exact, found, np.array([0, 1, 2, 3]))
    assert (judged.flip_rate, judged.drop, judged.accuracy) == (0.25, 25.0, 0.75)
    assert not judged.within(24.9, 100)
    assert judged.within(25.0, 25.0)


def test_the_fewest_are_spared() -> None:
    ranked = [Cost(str(i), str(i), 1.0 / (i + 1), 4) for i in range(4)]
    good, bad = compare(np.eye(2), np.eye(2), np.arange(2)), compare(
        np.eye(2), np.eye(2)[::-1], np.arange(2))  # fmt: skip
    found = spare_fewest(ranked, lambda nodes: good if len(nodes) >= 2 else bad,
                         max_loss=0.3, max_flips=1.5)  # fmt: skip
    assert (found.nodes, found.enough) == (("0", "1"), True)
    found = spare_fewest(ranked, lambda nodes: bad, max_loss=0.3, max_flips=1.5)
    assert not found.enough


@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_a_layer_that_eight_bits_ruin_is_found_and_spared(tmp_path: Path, scheme: str) -> None:
    """A channel a thousand times too long, undone by the next matrix: float does not notice."""
    ruined = tiny("bert")
    layer = layers_of(ruined)[1]
    with torch.no_grad():
        linear(layer, "attention.self.value").weight[3] *= 1000
        linear(layer, "attention.self.value").bias[3] *= 1000
        linear(layer, "attention.output.dense").weight[:, 3] /= 1000
    path, target = tmp_path / "float.onnx", tmp_path / "model.onnx"
    export_onnx(ruined, path, max_length=16)
    exact = logits_one_by_one(path, IDS, weight_bits=8)
    nodes = weighted_nodes(path, ruined)
    exam = Exam(path, nodes, IDS, exact.argmax(-1), exact, IDS[:32])
    config = settings(scheme=scheme, max_loss=1.0, max_flips=1.6, per_channel=True)
    record = quantise(exam, target, config, CPU, say=lambda line: None)
    assert record["tried"][0]["flip_rate"] > 0.016
    assert record["sensitivity"][0]["layer"] == "bert.encoder.layer.1.attention.output.dense"
    assert record["kept_float"][0] == record["sensitivity"][0]["layer"]
    assert record["flip_rate"] <= 0.016
    assert "kept in fp32" in record["action"]
    assert record["first_divergence"]["layer"].startswith("bert.encoder.layer.1.")
    found = logits_one_by_one(target, IDS, weight_bits=7)
    assert compare(exact, found, exam.labels).as_dict().items() <= record.items()


def test_within_the_budget_nothing_is_spared(
    model: torch.nn.Module, graph: Path, exact: np.ndarray, tmp_path: Path
) -> None:
    exam = Exam(graph, weighted_nodes(graph, model), IDS, exact.argmax(-1), exact, [])
    config = settings(max_loss=100.0, max_flips=100.0)
    record = quantise(exam, tmp_path / "model.onnx", config, CPU, say=lambda line: None)
    assert record["kept_float"] == []
    assert {row["layer"] for row in record["sensitivity"]} == {n.layer for n in exam.nodes}
    assert len(record["tried"]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


def test_divergence_begins_where_it_was_planted(
    model: torch.nn.Module, graph: Path, tmp_path: Path
) -> None:
    broken = onnx.load(graph)
    nodes = weighted_nodes(graph, model)
    wanted = next(n for n in nodes if n.layer == "bert.encoder.layer.1.intermediate.dense")
    weight = next(t for t in broken.graph.initializer if t.name == wanted.weight)
    weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), weight.name))
    onnx.save(broken, tmp_path / "broken.onnx")
    found = first_divergence(graph, tmp_path / "broken.onnx", nodes, IDS[:4], weight_bits=8)
    assert found is not None
    assert found["layer"] == "bert.encoder.layer.1.intermediate.dense"
    assert first_divergence(graph, graph, nodes, IDS[:4], weight_bits=8) is None


def test_names_of_profiles_are_those_of_the_table() -> None:
    field = schema.Hardware.model_fields["profile"].annotation
    assert list(field.__args__) == list(PROFILES)
    for name, profile in PROFILES.items():
        assert profile_of(profile.needs) == name, "each can be found, the best one first"
    assert profile_of({"avx2", "avx512f", "avx512bw", "avx512_vnni"}) == "cpu-avx512-vnni"
    assert profile_of(set()) == "cpu"
    assert precision(settings(scheme="weight_only", bits=4)) == "int4 weights"


def test_a_bundle_is_at_home_or_not() -> None:
    assert foreign("cpu-avx2", {"avx2", "avx512f", "avx512_vnni"}) is None
    assert foreign("unheard of", set()) is None
    assert foreign("gpu-sm90", {"avx2", "sm90"}) is None
    assert "this machine is gpu-sm80" in str(foreign("gpu-sm90", {"avx2", "sm80"}))
    said = foreign("cpu-avx512-vnni", {"avx2"})
    assert said is not None
    assert "built for cpu-avx512-vnni, this machine is cpu-avx2" in said


def test_processors() -> None:
    assert processor.native_bf16({"avx512_bf16"})
    assert not processor.native_bf16({"avx2"})
    assert processor.saturates({"sse2", "avx2"})
    assert not processor.saturates({"sse2", "avx512_vnni"})
    assert not processor.saturates({"asimd"})


def test_byte_products_are_exact_on_every_processor() -> None:
    """255 × 127, twice, is more than sixteen bits hold: the loader must not let them saturate."""
    weight = np.full((4, 4), 127, np.int8)
    inputs = [helper.make_tensor_value_info(name, TensorProto.UINT8, [1, 4])
              for name in ("input_ids", "attention_mask")]  # fmt: skip
    output = helper.make_tensor_value_info("logits", TensorProto.INT32, [1, 4])
    node = helper.make_node("MatMulInteger", ["input_ids", "w"], ["sum"])
    rest = helper.make_node("Cast", ["attention_mask"], ["unused"], to=TensorProto.INT32)
    add = helper.make_node("Add", ["sum", "unused"], ["logits"])
    model = helper.make_model(
        helper.make_graph([node, rest, add], "g", inputs, [output],
                          [numpy_helper.from_array(weight, "w")]),
        opset_imports=[helper.make_opsetid("", 20)], ir_version=10,
    )  # fmt: skip
    row, nothing = np.full((1, 4), 255, np.uint8), np.zeros((1, 4), np.uint8)
    found = OnnxRuntime(model.SerializeToString()).run(row, nothing)
    assert found.tolist() == [[4 * 255 * 127] * 4]
