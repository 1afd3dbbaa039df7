"""Every technique is a setting: it runs on the real chain, survives saving, loading and export.

One stage at a time, in a copy of the smoke recipe's workspace.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import numpy_helper

from tasks.errors import GateRefused, UsageError
from tasks.evaluation.quality import quality
from tasks.hardware import PROFILES
from tasks.modeling.architecture import layers_of
from tasks.modeling.checkpoint import load_checkpoint
from tasks.modeling.surgery import model_shape_of, shapes_of
from tasks.params import assignment, load, overlay, read_yaml
from tasks.problems.classification import encode, logits_of, read_split, read_tokenizer
from tasks.pruning.sparsity import matrices, sparsity_of
from tasks.quantization.aware import train_aware
from tasks.quantization.choice import Build
from tasks.quantization.export import check_export, export_onnx
from tasks.quantization.readiness import not_ready
from tasks.release.servable import Servable, file_bytes
from tasks.stage import discard_outputs, finite, use_threads
from tests.conftest import Run
from tests.tiny_models import decoder

Stage = Callable[..., tuple[Path, dict[str, Any]]]
SHORT = ("distill.training.epochs=1", "finetune.training.epochs=1", "prune.training.epochs=0.5")


@pytest.fixture
def workspace(smoke: Run, tmp_path: Path) -> Path:
    room = tmp_path / "workspace"
    kept = shutil.ignore_patterns(".dvc", "deploy", "quantize", "teacher_servable", "reports")
    shutil.copytree(smoke.workspace, room, ignore=kept)
    return room


@pytest.fixture
def stage(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Run one stage with settings, in this process: a start of its own costs as much as the work.

    Returns its checkpoint and its metrics, and raises what `tasks.stage.run` makes an exit code of.
    """
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("STILLROOM_HOME", str(workspace / "var"))

    def run(name: str, *settings: str) -> tuple[Path, dict[str, Any]]:
        params = read_yaml(workspace / "params.yaml")
        for setting in (*SHORT, *settings):
            params = overlay(params, assignment(setting))
        (workspace / "params.yaml").write_text(yaml.safe_dump(params))
        discard_outputs(name)
        use_threads(params["hardware"]["threads"])
        main = importlib.import_module(f"tasks.{name}").main
        metrics = finite(main(load()))
        metrics.pop("runtime", None)
        return workspace / "data" / "models" / name, metrics

    return run


def exported_alike(folder: Path, tmp_path: Path) -> None:
    """The checkpoint loads strictly, and its export gives its logits."""
    model = load_checkpoint(folder)
    export_onnx(model, tmp_path / "model.onnx", max_length=32)
    texts = read_split(folder.parents[1] / "prepared" / "validation.parquet").texts[:24]
    ids = encode(read_tokenizer(folder, 32), texts)
    pad_id = model.config.pad_token_id
    assert check_export(model, tmp_path / "model.onnx", ids, pad_id=pad_id) < 1e-4


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "fisher"])
def test_importance(stage: Stage, importance: str) -> None:
    _, metrics = stage("prune", f"prune.importance={importance}")
    assert metrics["validation"]["accuracy"] > 0.02
    assert metrics["rounds"][0]["sharpness"] is not None


def test_channels_layers_and_a_factorised_table(stage: Stage, tmp_path: Path) -> None:
    folder, metrics = stage(
        "prune", "prune.hidden_keep=0.5", "prune.drop_layers=1", "prune.embedding_rank=48"
    )
    model = load_checkpoint(folder)
    assert len(layers_of(model)) == 2 == len(metrics["layers"])
    assert len(model_shape_of(model).channels) == 192
    assert [sum(map(bool, one["kept"])) for one in metrics["rounds"]] == [2, 2, 2]
    exported_alike(folder, tmp_path)


def test_a_layer_is_recovered_from_before_the_next_goes(stage: Stage, workspace: Path) -> None:
    cuts = ("prune.drop_layers=2", "prune.heads_keep=1.0", "prune.ffn_keep=1.0")
    _, at_once = stage("prune", *cuts)
    _, metrics = stage("prune", *cuts, "prune.rounds=2")
    assert [sum(map(bool, one["kept"])) for one in metrics["rounds"]] == [2, 1, 1, 1]
    curve = (workspace / "metrics" / "prune.history.jsonl").read_text("utf-8").splitlines()
    kinds = ["round" if "round" in row else "step" for row in map(json.loads, curve)]
    assert kinds[:2] == ["round", "round"]
    assert "step" in kinds[2 : kinds.index("round", 2)], "training between the two layers"
    assert metrics["rounds"][-1]["loss"] < at_once["rounds"][-1]["loss"]


def test_rounds_with_recovery_between(stage: Stage, workspace: Path) -> None:
    _, metrics = stage("prune", "prune.rounds=2", "prune.scope=global")
    _, single = stage("prune", "prune.rounds=1", "prune.scope=layer")
    assert [one["round"] for one in metrics["rounds"]] == [1, 2]
    heads = [sum(layer["heads"] for layer in one["kept"]) for one in metrics["rounds"]]
    assert heads[1] < heads[0] < 36
    assert (workspace / "metrics" / "prune.png").read_bytes().startswith(b"\x89PNG")
    curve = (workspace / "metrics" / "prune.history.jsonl").read_text("utf-8").splitlines()
    first, second = map(json.loads, curve)
    assert (first["round"], second["round"]) == (0, 1)
    assert (first["eval_loss"], first["sharpness"]) == (
        single["before"]["loss"], single["before"]["sharpness"]
    )  # fmt: skip
    assert [one | {"weights": 1.0} for one in single["kept"]] == single["rounds"][-1]["kept"]


def test_what_was_trained_between_rounds_is_measured_in_fp32(stage: Stage) -> None:
    """Sums of SparseGPT's Hessian do not bear bfloat16, nor does an export."""
    cuts = ("prune.rounds=2", "prune.drop_layers=1")
    _, metrics = stage("prune", *cuts, "prune.sparsity.method=sparsegpt",
                       "prune.sparsity.target=0.5")  # fmt: skip
    assert metrics["sparsity"]["share"] == pytest.approx(0.5, abs=2e-3)
    _, metrics = stage("prune", *cuts, "prune.sparsity.method=none", "prune.budget.bytes=3000000")
    assert metrics["budget"]["bytes"] <= 3_000_000


def test_a_budget_is_met_or_refused(stage: Stage) -> None:
    _, metrics = stage("prune", "prune.budget.bytes=3500000")
    assert metrics["budget"]["bytes"] <= 3_500_000
    curves = metrics["sensitivity"]
    assert {(c["layer"], c["kind"]) for c in curves} == {
        (layer, kind) for layer in range(3) for kind in ("heads", "neurons")
    }
    assert len(metrics["sensitivity_layers"]) == 3
    assert metrics["sensitivity_channels"][-1][1] == 0
    _, others = stage("prune", "prune.budget.flops=80000000", "prune.budget.latency_ms=100")
    assert others["budget"]["flops"] <= 80_000_000
    with pytest.raises(UsageError, match=r"prune\.budget\.latency_ms"):
        stage("prune", "prune.budget.latency_ms=0.001")
    with pytest.raises(UsageError, match=r"prune\.budget\.bytes") as refused:
        stage("prune", "prune.budget.bytes=100000")
    assert "stillroom compress" in str(refused.value.next_command)


@pytest.mark.parametrize(
    ("method", "pattern", "share"),
    [("wanda", "unstructured", 0.6), ("wanda", "2of4", 0.5), ("sparsegpt", "unstructured", 0.6),
     ("sparsegpt", "2of4", 0.5), ("magnitude", "unstructured", 0.6)],
)  # fmt: skip
def test_zeros_survive_finetuning(
    stage: Stage, tmp_path: Path, method: str, pattern: str, share: float
) -> None:
    settings = (f"prune.sparsity.method={method}", f"prune.sparsity.pattern={pattern}",
                f"prune.sparsity.target={share}")  # fmt: skip
    pruned, metrics = stage("prune", *settings)
    assert metrics["sparsity"]["share"] == pytest.approx(share, abs=2e-3)
    assert [one["round"] for one in metrics["rounds"]] == [1, 2]  # of width, then of zeros
    left = [layer["weights"] for layer in metrics["rounds"][-1]["kept"]]
    assert left == pytest.approx([1 - share] * 3, abs=2e-3)
    exported_alike(pruned, tmp_path)
    before = matrices(load_checkpoint(pruned))
    recovered, after = stage("finetune", *settings)
    assert after["sparsity"] >= metrics["sparsity"]["share"]
    for name, matrix in matrices(load_checkpoint(recovered)).items():
        assert not matrix.weight[before[name].weight == 0].any(), name
        assert not torch.equal(matrix.weight, before[name].weight)


def test_a_lottery_ticket_is_rewound(stage: Stage, tmp_path: Path) -> None:
    settings = ("distill.early=0.1", "prune.sparsity.method=lottery", "prune.sparsity.rounds=2",
                "prune.sparsity.target=0.5", "prune.training.epochs=0.2")  # fmt: skip
    distilled, _ = stage("distill", *settings)
    assert (distilled / "early.safetensors").exists()
    pruned, metrics = stage("prune", *settings)
    assert sparsity_of(load_checkpoint(pruned)) == pytest.approx(0.5, abs=2e-3)
    zeros = [1 - one["kept"][0]["weights"] for one in metrics["rounds"]]  # of width, three tickets
    assert zeros == pytest.approx([0.0, 0.0, 1 - 0.5**0.5, 0.5], abs=2e-3)
    exported_alike(pruned, tmp_path)
    assert metrics["parameters"] < 5_000_000


@pytest.mark.parametrize(
    "settings",
    [("distill.logits=mse",),
     ("distill.states=1.0", "distill.embeddings=1.0", "distill.growth=0.5"),
     ("distill.attention=1.0", "distill.attention_form=relations", "distill.contrastive=0.1"),
     ("distill.attention=1.0", "distill.temperature_end=1.0", "distill.alpha_end=0.0")],
    ids=["mse", "states", "relations", "maps-and-schedules"],
)  # fmt: skip
def test_objectives(stage: Stage, tmp_path: Path, settings: tuple[str, ...]) -> None:
    folder, metrics = stage("distill", *settings)
    assert np.isfinite(metrics["validation"]["nll"])
    exported_alike(folder, tmp_path)
    split = read_split(folder.parents[1] / "prepared" / "validation.parquet")
    saved = logits_of(load_checkpoint(folder), read_tokenizer(folder, 32), split.texts)
    assert metrics["validation"] == pytest.approx(quality(saved, split.labels)), "of what is saved"


def test_assistants_and_averaged_students(stage: Stage) -> None:
    folder, _ = stage("distill", "distill.assistants=[[0, 1, 3, 5]]", "distill.students=2")
    assert len(layers_of(load_checkpoint(folder))) == 3
    lineage = json.loads((folder / "surgery.json").read_text("utf-8"))["lineage"]
    assert [step["stage"] for step in lineage] == ["baseline", "distill"]


def test_the_students_own_model_teaches_it_too_and_a_decoder_writes(
    smoke: Run, stage: Stage, tmp_path: Path
) -> None:
    pretrained = smoke.workspace / "data" / "pretrained"
    settings = ("distill.student.source=path", f"distill.student.path={pretrained}",
                "teach.second.enabled=true", "teach.second.training.epochs=1",
                "gate.baseline_floor=0.02", "teach.writer.enabled=true",
                "teach.writer.source=path", f"teach.writer.path={decoder(tmp_path / 'decoder')}",
                "teach.writer.texts=3")  # fmt: skip
    stage("fetch", *settings)
    _, metrics = stage("teach", *settings)
    assert metrics["teachers"] == 2
    assert 0 < metrics["written"] <= metrics["writer"]["asked"] == 77 * 3
    assert metrics["second"]["validation"]["accuracy"] > 0.02
    folder, learned = stage("distill", *settings, *SHORT)
    assert learned["source"] == "path"
    exported_alike(folder, tmp_path)


def test_a_fresh_student_with_states_of_another_width(stage: Stage, tmp_path: Path) -> None:
    folder, metrics = stage(
        "distill",
        "distill.student.source=fresh",
        "distill.states=1.0",
        "gate.stage_drop.distill=100",
    )
    model = load_checkpoint(folder)
    assert shapes_of(model)[0].ffn == 384
    assert not [name for name in model.state_dict() if "objective" in name]
    assert metrics["source"] == "fresh"
    exported_alike(folder, tmp_path)


def test_a_further_run_starts_from_the_model_of_the_one_before(
    smoke: Run, stage: Stage, workspace: Path
) -> None:
    settings = ("distill.student.source=run", f"distill.student.run={smoke.workspace}")
    stage("fetch", *settings)
    copied = workspace / "data" / "student"
    assert json.loads((copied / "source.json").read_text("utf-8")) == {"source": "run"}
    folder, _ = stage("distill", *settings)
    expected = shapes_of(load_checkpoint(smoke.workspace / "data" / "models" / "finetune"))
    assert shapes_of(load_checkpoint(folder)) == expected
    lineage = json.loads((folder / "surgery.json").read_text("utf-8"))["lineage"]
    assert [step["stage"] for step in lineage][-2:] == ["finetune", "distill"]


def test_a_further_run_keeps_the_zeros_of_the_one_before(stage: Stage) -> None:
    sparse, _ = stage("prune", "prune.sparsity.method=wanda", "prune.sparsity.target=0.6")
    before = matrices(load_checkpoint(sparse))
    settings = ("distill.student.source=run", f"distill.student.run={sparse}",
                "gate.stage_drop.distill=100")  # fmt: skip
    stage("fetch", *settings)
    folder, _ = stage("distill", *settings)
    for name, matrix in matrices(load_checkpoint(folder)).items():
        assert not matrix.weight[before[name].weight == 0].any(), name
        assert not torch.equal(matrix.weight, before[name].weight)


def test_a_pruned_model_is_the_next_runs_teacher(smoke: Run, stage: Stage, workspace: Path) -> None:
    pruned = smoke.workspace / "data" / "models" / "finetune"
    settings = ("teacher.source=path", f"teacher.path={pruned}", "teacher.training.epochs=0")
    stage("fetch", *settings)
    folder, metrics = stage("baseline", *settings)
    assert metrics["steps"] == 0
    for name, tensor in load_checkpoint(pruned).state_dict().items():
        assert torch.equal(load_checkpoint(folder).state_dict()[name], tensor)


def test_learning_rate_rewinding_and_early_stopping(stage: Stage) -> None:
    folder, metrics = stage(
        "finetune", "finetune.rewind=true", "finetune.training.epochs=6",
        "finetune.training.patience=1", "distill.training.learning_rate=1.0e-9",
    )  # fmt: skip
    rows = len(read_split(folder.parents[1] / "prepared" / "train.parquet").texts)
    epoch = metrics["steps"] // 2  # nothing is learned, so the second epoch is one without gain
    assert epoch * 32 >= rows > (epoch - 1) * 32


def test_training_with_simulated_int8(stage: Stage) -> None:
    settings = ("quantize.aware.mode=always", "quantize.aware.training.epochs=0.5",
                "quantize.runtimes=[onnxruntime,openvino]")  # fmt: skip
    folder, metrics = stage("quantize", *settings)
    found = metrics["quantisation"]
    forms = {one["runtime"]: one for one in found["runtimes"]}
    tried = [one for form in forms.values() for one in form["tried"]]
    assert [one["what"] for one in tried].count("trained with simulated int8") == 1
    for form in forms.values():
        assert form["drop"] == min(one["drop"] for one in form["tried"])
    served = forms[found["runtime"]]
    assert {key: found[key] for key in ("drop", "kl", "tried")} == {
        key: served[key] for key in ("drop", "kl", "tried")
    }
    assert json.loads((folder / "serving.json").read_text("utf-8"))["runtime"] == found["runtime"]
    assert served["bytes"] == (folder / "model.onnx").stat().st_size
    assert not (folder / "trained.onnx").exists()


def test_training_with_simulated_int8_begins_by_itself_beyond_the_budget(stage: Stage) -> None:
    folder, metrics = stage("quantize", "quantize.max_flips=0.0", "quantize.max_loss=0.0",
                            "quantize.aware.training.epochs=0.2")  # fmt: skip
    tried = [one["what"] for one in metrics["quantisation"]["tried"]]
    assert tried[0] == "dynamic"
    assert tried[-1] == "trained with simulated int8"
    assert metrics["file_bytes"] == file_bytes(folder)


def test_what_is_served_keeps_the_bytes_that_pruning_planned_for(stage: Stage) -> None:
    with pytest.raises(GateRefused, match=r"prune\.budget\.bytes: the served files take 3,") as no:
        stage("quantize", "prune.budget.bytes=3000000")
    assert "--set prune.budget.bytes=2" in str(no.value.next_command)
    stage("quantize", "prune.budget.bytes=9000000")


def test_simulated_int8_keeps_zeros_and_suits_the_engine_that_serves(
    stage: Stage, tmp_path: Path
) -> None:
    settings = ("prune.sparsity.method=wanda", "prune.sparsity.target=0.6",
                "quantize.per_channel=false", "quantize.embeddings=false",
                "quantize.aware.training.epochs=0.2")  # fmt: skip
    stage("prune", *settings)
    folder, _ = stage("finetune", *settings)
    params, tokenizer = load(), read_tokenizer(folder, 32)
    validation = read_split(folder.parents[1] / "prepared" / "validation.parquet")
    exact = logits_of(load_checkpoint(folder), tokenizer, validation.texts)
    served = Build("tensorrt", params.quantize, PROFILES["gpu-sm90"], folder, {}, within=False,
                   absent="no GPU")  # fmt: skip
    target, texts = tmp_path / "trained.onnx", validation.texts[:100]
    fidelity, _ = train_aware(params, target, tokenizer, validation, exact, texts, served)
    assert fidelity.flip_rate < 0.2
    model = onnx.load(target)
    assert not_ready(model) == []
    levels = [numpy_helper.to_array(t) for t in model.graph.initializer
              if t.name.endswith("_weight") and t.data_type == onnx.TensorProto.INT8]  # fmt: skip
    scales = [t.dims for t in model.graph.initializer if t.name.endswith("_scale")]
    assert scales
    assert not any(scales), "one for each matrix"
    assert not [t.name for t in model.graph.initializer if t.name.endswith("_int8")], "no table"
    zeros = sum(int((m.weight == 0).sum()) for m in matrices(load_checkpoint(folder)).values())
    assert zeros > 0.5 * sum(array.size for array in levels)
    assert sum(int((array == 0).sum()) for array in levels) >= zeros


def test_early_exits_are_trained_and_served_in_stages(stage: Stage) -> None:
    folder, plain = stage("finetune")
    assert "exits" not in plain
    before = load_checkpoint(folder).state_dict()
    folder, metrics = stage("finetune", "exits.layers=[1, 2]")
    assert [row["layer"] for row in metrics["exits"]] == [1, 2]
    assert metrics["validation"] == plain["validation"]
    for name, tensor in load_checkpoint(folder).state_dict().items():
        assert torch.equal(before[name], tensor)
    folder, metrics = stage("quantize", "exits.layers=[1, 2]", "exits.confidence=0.5")
    served = Servable(folder)
    texts = read_split(folder.parents[1] / "prepared" / "validation.parquet").texts
    depths = [int(served.depths([text])[0]) for text in texts]
    share = [depths.count(depth) / len(texts) for depth in (1, 2, 3)]
    assert metrics["exits"]["share"] == pytest.approx(share)
    assert metrics["exits"]["accuracy"] == pytest.approx(metrics["validation"]["accuracy"])
    with pytest.raises(UsageError, match=r"exits\.layers"):
        stage("finetune", "exits.layers=[3]")


@pytest.mark.parametrize("scheme", ["static", "weight_only", "half", "bf16"])
def test_every_form_is_served(stage: Stage, scheme: str) -> None:
    _, metrics = stage("quantize", f"quantize.scheme={scheme}", "quantize.sensitivity=false")
    assert metrics["quantisation"]["flip_rate"] < 0.1
    assert metrics["precision"] != "fp32"
