"""The whole chain with real weights and real texts, as its four users meet it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest
import yaml

from tasks.evaluation.latency import engine_ratio
from tasks.problems.classification import read_split
from tasks.release.servable import Servable, artifact_sha256, file_bytes, file_hashes
from tests.conftest import ROOT, SMOKE, Run, pace

pytestmark = pytest.mark.slow
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"])
TRAINED = ("baseline", "distill", "finetune")


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def conforms(document: Any, schema: str) -> None:
    jsonschema.validate(document, read(ROOT / "infra" / "schemas" / f"{schema}.schema.json"))


def locked(workspace: Path) -> dict[str, str]:
    lock = yaml.safe_load((workspace / "dvc.lock").read_text("utf-8"))["stages"]
    return {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}


def test_every_file_of_the_contract_is_there_and_fits_its_schema(smoke: Run) -> None:
    metrics, models = smoke.workspace / "metrics", smoke.workspace / "data" / "models"
    for stage in STAGES:
        conforms(read(metrics / f"{stage}.json"), "stage")
        conforms(read(metrics / f"{stage}.runtime.json"), "runtime")
    conforms(read(metrics / "gate.json"), "gate")
    conforms(read(smoke.workspace / "reports" / "summary.json"), "summary")
    conforms(read(models / "deploy" / "manifest.json"), "manifest")
    for folder in ("deploy", "quantize", "teacher_servable"):
        conforms(read(models / folder / "serving.json"), "serving")
    conforms(smoke.shell.stillroom("status", "--model", "smoke", "--json").json, "status")
    for name in ("summary.md", "index.html", "pareto.png"):
        assert (smoke.workspace / "reports" / name).stat().st_size > 500
    for stage in TRAINED:
        rows = [json.loads(line) for line in (metrics / f"{stage}.history.jsonl").open()]
        assert any("loss" in row for row in rows)
        assert any("eval_accuracy" in row for row in rows)


def test_the_summary_is_of_the_served_bytes(smoke: Run) -> None:
    summary = read(smoke.workspace / "reports" / "summary.json")
    rows = [row["stage"] for row in summary["stages"]]
    assert rows == ["teacher", "linear", "distill", "prune", "finetune", "quantize", "deploy"]
    deploy = smoke.workspace / "data" / "models" / "deploy"
    hashes = file_hashes(deploy)
    manifest = read(deploy / "manifest.json")
    assert summary["stages"][-1]["file_bytes"] == file_bytes(deploy) == manifest["file_bytes"]
    assert summary["gate"]["artifact_sha256"] == artifact_sha256(hashes)
    assert manifest["files"] == hashes
    assert manifest["quality"] == summary["stages"][-1]["quality"]
    first, last = summary["stages"][0], summary["stages"][-1]
    assert summary["ratios"]["size"] == pytest.approx(first["file_bytes"] / last["file_bytes"])
    assert summary["ratios"]["size"] > 10
    assert summary["ratios"]["quality_retained"] == pytest.approx(
        last["quality"]["accuracy"] / first["quality"]["accuracy"]
    )
    # sha256sum in the folder says the same
    files = " ".join(sorted(hashes))
    said = subprocess.run(f"sha256sum {files} | sha256sum", shell=True, cwd=deploy,
                          capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert said.split()[0] == manifest["artifact_sha256"]


EVIDENCE = {"calibration", "confusions", "counterfactual", "energy", "engine", "flips", "latency",
            "long_texts", "mcnemar", "memorisation", "ood", "per_class", "quantisation",
            "robustness", "scripts", "slices", "small_slices", "vocabulary"}  # fmt: skip


MAY_BE_NONE = ("memorisation", "confusions", "small_slices")


def test_the_evidence_is_whole(smoke: Run) -> None:
    evidence = read(smoke.workspace / "reports" / "summary.json")["evidence"]
    assert set(evidence) == EVIDENCE
    assert all(evidence[key] for key in evidence if key not in MAY_BE_NONE)
    assert {row["name"] for row in evidence["robustness"]} >= {"typing errors", "capitals"}
    metrics = smoke.workspace / "metrics"
    own = read(metrics / "quantize.json")["quantisation"]
    times = read(metrics / "quantize.runtime.json")["p50_ms_by_runtime"]
    own["runtimes"] = [{**r, "p50_ms": times.get(r["runtime"])} for r in own["runtimes"]]
    assert evidence["quantisation"] == own
    assert evidence["flips"]["rate"] > 0
    assert evidence["engine"]["ratio"] > 0.5
    assert [s["stage"] for s in evidence["energy"]["stages"]] == STAGES[:8]
    page = (smoke.workspace / "reports" / "summary.md").read_text("utf-8")
    assert "## Robustness" in page
    assert "## What quantisation cost" in page


@pytest.mark.alone
def test_nothing_to_do_takes_under_fifteen_seconds(smoke: Run) -> None:
    """On the machine that the limit was set on; on another one, in proportion to its starts."""
    limit = 15 * pace()
    started = time.monotonic()
    again = smoke.shell.stillroom(*SMOKE, "--json")
    took = time.monotonic() - started
    assert again.code == 0, again.err
    assert again.json["stages_run"] == []
    assert again.json["version"] == smoke.said["version"], "registration is idempotent"
    assert took < limit


@pytest.mark.alone
def test_text_to_label_is_the_engine_and_little_else(smoke: Run) -> None:
    """Asked: 1.5 times the bare engine on ready ids at most; a larger model is nearer to 1."""
    servable = Servable(smoke.workspace / "data" / "models" / "deploy")
    texts = read_split(smoke.workspace / "data" / "prepared" / "validation.parquet").texts[:200]
    assert min(engine_ratio(servable, texts)["ratio"] for _ in range(3)) < 1.5


def test_the_checkout_is_not_touched(smoke: Run) -> None:
    assert smoke.workspace.is_relative_to(smoke.shell.home)
    assert not smoke.workspace.samefile(ROOT)
    ours = {p.relative_to(smoke.workspace) for p in (smoke.workspace / "tasks").rglob("*.py")}
    assert ours == {p.relative_to(ROOT) for p in (ROOT / "tasks").rglob("*.py")}


def test_dvc_repro_alone_gives_the_same_bytes(smoke: Run, tmp_path: Path) -> None:
    """No server, no flow, no shared cache: every output is what the flow made, training too."""
    plain = tmp_path / "plain"
    keep = shutil.ignore_patterns("data", "metrics", "reports", "dvc.lock", "config.local", "var")
    shutil.copytree(smoke.workspace, plain, ignore=keep)
    shutil.copytree(smoke.workspace / "data" / "own", plain / "data" / "own")
    (plain / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    done = smoke.shell("dvc", "repro", cwd=plain)
    assert done.code == 0, done.out + done.err
    ours, theirs = locked(plain), locked(smoke.workspace)
    assert ours.keys() == theirs.keys()
    timed = re.compile(r"runtime\.json|reports/")
    assert {p: h for p, h in ours.items() if not timed.search(p)} == {
        p: h for p, h in theirs.items() if not timed.search(p)
    }
    assert "didn't change" in smoke.shell("dvc", "repro", cwd=plain).out


def test_what_a_dvc_user_types(smoke: Run, tmp_path: Path) -> None:
    shell, there = smoke.shell, smoke.workspace
    dag = shell("dvc", "dag", "--dot", cwd=there)
    assert all(stage in dag.out for stage in STAGES)
    metrics = shell("dvc", "metrics", "show", "--json", cwd=there)
    assert metrics.code == 0
    assert "metrics/gate.json" in metrics.out
    plots = shell("dvc", "plots", "show", "--out", str(tmp_path / "plots"), cwd=there)
    assert plots.code == 0, plots.err
    page = (tmp_path / "plots" / "index.html").read_text("utf-8")
    assert all(f"{stage}.curve.csv" in page or f"{stage}_curve_csv" in page for stage in TRAINED)


def test_push_and_pull_through_a_directory(smoke: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(smoke.workspace, other,
                    ignore=shutil.ignore_patterns("config.local", "raw", "models"))  # fmt: skip
    local = "[core]\n    no_scm = true\n    remote = there\n['remote \"there\"']\n    url = {}\n"
    here = smoke.workspace / ".dvc" / "config.local"
    before = here.read_text()
    try:
        here.write_text(before + f"['remote \"there\"']\n    url = {tmp_path / 'remote'}\n")
        pushed = smoke.shell("dvc", "push", "-r", "there", cwd=smoke.workspace)
        assert pushed.code == 0, pushed.err
    finally:
        here.write_text(before)
    (other / ".dvc" / "config.local").write_text(local.format(tmp_path / "remote"))
    pulled = smoke.shell("dvc", "pull", cwd=other)
    assert pulled.code == 0, pulled.err
    bundle = Path("data/models/deploy")
    assert file_hashes(other / bundle) == file_hashes(smoke.workspace / bundle)


def test_the_cache_links_rather_than_copies(smoke: Run) -> None:
    place = smoke.workspace / "data" / "models" / "baseline"
    shutil.rmtree(place)
    assert smoke.shell("dvc", "checkout", "baseline", cwd=smoke.workspace).code == 0
    model = place / "model.safetensors"
    assert model.is_symlink() or model.stat().st_nlink > 1
    # and what a run writes anew is linked at once: DVC does so for the first type alone
    types = smoke.shell("dvc", "config", "cache.type", cwd=smoke.workspace).out
    assert types.split(",")[0].strip() == "hardlink"


def test_a_quantize_setting_runs_from_quantize_on(
    smoke: Run, smoke_variant: Callable[..., Run]
) -> None:
    other = smoke_variant("quantize.per_channel=false")
    assert set(other.said["stages_run"]) <= {"quantize", "validate", "deploy"}
    assert other.workspace != smoke.workspace
    assert (other.workspace / "data/models/deploy/manifest.json").exists()


def test_stages_that_are_switched_off_pass_their_input_through(
    smoke: Run, smoke_variant: Callable[..., Run]
) -> None:
    off = [f"{stage}.enabled=false" for stage in ("distill", "prune", "finetune")]
    there = smoke_variant(*off, "gate.max_bytes=100000000").workspace / "data" / "models"
    same = "model.safetensors"
    expected = (there / "baseline" / same).read_bytes()
    assert all((there / stage / same).read_bytes() == expected for stage in ("distill", "finetune"))


def test_what_trimming_costs_is_looked_for_elsewhere(smoke: Run) -> None:
    shares = read(smoke.workspace / "metrics" / "distill.json")["unknown_share"]
    assert set(shares) == {"validation", "elsewhere"}
    for found in shares.values():
        assert 0 <= found["source"] <= found["student"] < 0.05, "characters stay, so words do"
    other = pq.read_table(smoke.workspace / "data" / "prepared" / "elsewhere.parquet")
    assert other.num_rows > 2000


def test_a_comment_in_params_reruns_nothing(smoke: Run) -> None:
    params = smoke.workspace / "tasks" / "params.py"
    before = params.read_text("utf-8")
    try:
        params.write_text(before + "# a comment\n", encoding="utf-8")
        status = smoke.shell("dvc", "status", "--json", cwd=smoke.workspace)
        assert json.loads(status.out) == {}
    finally:
        params.write_text(before, encoding="utf-8")


def test_plumbing_is_told(smoke: Run) -> None:
    cost = smoke.said["plumbing"]
    runtimes = [read(p) for p in (smoke.workspace / "metrics").glob("*.runtime.json")]
    if smoke.said["stages_run"] == STAGES:
        assert cost["work_s"] == pytest.approx(sum(r["work_s"] for r in runtimes), abs=0.1)
    assert cost["plumbing_s"] == pytest.approx(cost["total_s"] - cost["work_s"], abs=0.1)


def test_a_refused_candidate_leaves_the_champion_alone(
    smoke: Run, smoke_variant: Callable[..., Run]
) -> None:
    before = smoke.shell.stillroom("status", "--model", "smoke", "--json").json
    done = smoke.shell.stillroom(*SMOKE, "--set", "gate.max_bytes=1000", "--promote", "--json")
    assert done.code == 3
    assert re.search(r"bytes: found [\d,.e+]+, expected at most 1,000", done.err)
    assert "Traceback" not in done.err
    refused = Path(done.json["workspace"])
    assert not (refused / "data/models/deploy").exists()
    assert read(refused / "metrics/gate.json")["passed"] is False
    assert (refused / "reports/summary.md").exists()
    assert smoke.shell.stillroom("status", "--model", "smoke", "--json").json == before
    assert smoke.shell("dvc", "repro", "deploy", cwd=refused).code != 0


def test_the_bundle_answers_with_onnxruntime_and_tokenizers_alone(smoke: Run) -> None:
    bundle = smoke.workspace / "data/models/deploy"
    blocked = ("torch", "transformers", "mlflow", "prefect", "datasets", "pandas", "sklearn")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "from pathlib import Path\n"
        "from tasks.release.servable import Servable\n"
        f"print(Servable(Path({str(bundle)!r})).predict(['where is my card?'])[0].label)"
    )
    done = smoke.shell(sys.executable, "-c", code)
    assert done.code == 0, done.err
    assert done.out.strip() in read(bundle / "labels.json")


def test_weights_and_embeddings_have_eight_bits(smoke: Run) -> None:
    import onnx

    graph = onnx.load(smoke.workspace / "data/models/deploy/model.onnx").graph
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    small = sum(a.nbytes for a in arrays if a.dtype.itemsize == 1)
    assert small / sum(a.nbytes for a in arrays) > 0.9
    pieces = read(smoke.workspace / "metrics/distill.json")["vocabulary"]
    tables = [a for a in arrays if a.ndim == 2 and a.shape[0] == pieces]
    assert [a.dtype.itemsize for a in tables] == [1]


def test_killed_training_goes_on_from_its_last_checkpoint(smoke: Run, tmp_path: Path) -> None:
    there = tmp_path / "cut-off"
    shutil.copytree(smoke.workspace, there, ignore=shutil.ignore_patterns("baseline*"))
    home = tmp_path / "home"
    env = {**smoke.shell.env, "STILLROOM_HOME": str(home)}
    command = [sys.executable, "-m", "tasks.baseline"]
    first = subprocess.Popen(command, cwd=there, env=env, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    states = "scratch/baseline/*/run/checkpoint-*/trainer_state.json"
    while not (saved := sorted(home.glob(states))):
        assert first.poll() is None, "it ended before a checkpoint was written"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    step = int(saved[0].parent.name.rsplit("-", 1)[1])
    again = subprocess.run(command, cwd=there, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"resuming from step {step}" in again.stdout
    resumed, whole = (read(w / "metrics/baseline.json") for w in (there, smoke.workspace))
    assert read(there / "metrics/baseline.runtime.json")["resumed_from"] == step
    assert resumed == whole, "as if it had never been cut off"
    assert not list(home.glob("scratch/baseline/*")), "checkpoints are gone after success"


def test_a_checkpoint_of_other_params_is_not_resumed(smoke: Run, tmp_path: Path) -> None:
    from tasks.training.trainer import scratch_key

    there = tmp_path / "other"
    shutil.copytree(smoke.workspace, there)
    before = scratch_key("distill", there)
    assert scratch_key("distill", smoke.workspace) == before
    text = (there / "params.yaml").read_text()
    (there / "params.yaml").write_text(text.replace("temperature: 4.0", "temperature: 5.0", 1))
    assert scratch_key("distill", there) != before
    (there / "params.yaml").write_text(text)
    code = there / "tasks/training/objectives.py"
    os.chmod(code, 0o644)
    code.write_text(code.read_text() + "\n# changed\n")
    assert scratch_key("distill", there) != before


def test_a_peer_stands_beside_ours(smoke: Run) -> None:
    words = ("compare-peers", "--workspace", str(smoke.workspace), "--peer", "onnxruntime-int8")
    done = smoke.shell.stillroom(*words, "--json")
    assert done.code == 0, done.err
    conforms(done.json, "peers")
    rows = {row["name"]: row for row in done.json["rows"]}
    assert set(rows) == {"stillroom", "onnxruntime-int8"}
    own = read(smoke.workspace / "reports" / "summary.json")["stages"][-1]
    assert rows["stillroom"]["quality"]["accuracy"] == own["quality"]["accuracy"]
    assert rows["stillroom"]["file_bytes"] == own["file_bytes"]
    assert rows["onnxruntime-int8"]["file_bytes"] > 4 * own["file_bytes"]
