"""`stillroom doctor`: every finding in its good case and in its bad one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from flows import doctor, machine
from flows.doctor import healthy, judge, report
from flows.machine import Machine, look
from tasks.params import load, overlay, parse, read_yaml
from tests.conftest import ROOT, Shell

PARAMS = load(ROOT / "params.yaml")
GOOD = Machine(
    python=(3, 11), locked={"numpy": "2.4.0"}, installed={"numpy": "2.4.0", "torch": "2.13.0+cpu"},
    flags=frozenset({"sse2", "avx2", "avx512f", "avx512_vnni", "avx512_bf16"}), cores=2,
    memory=16 * 10**9, disk=50 * 10**9, gpu="",
    absent={"onnxruntime": None, "openvino": None, "tensorrt": "no NVIDIA GPU"},
    links=("hardlink", "symlink"),
    locked_by=False, remote="", remote_says="", data=False, index="", index_answers=False, mlflow="sqlite:///x",
    mlflow_answers=True, prefect="", prefect_answers=True, chromium=True,
)  # fmt: skip


def found(check: str, params: Any = PARAMS, **changes: Any) -> doctor.Finding:
    return next(f for f in judge(replace(GOOD, **changes), params) if f.check == check)


def settings(key: str, value: Any) -> Any:
    return parse(overlay(read_yaml(ROOT / "params.yaml"), {"hardware": {key: value}}))


def test_a_good_machine_is_healthy() -> None:
    findings = judge(GOOD, settings("profile", "cpu-avx512-vnni"))
    assert {finding.level for finding in findings} == {"ok"}
    assert healthy(findings)
    assert not any(finding.remedy for finding in findings)
    assert len({finding.check for finding in findings}) == len(findings)


@pytest.mark.parametrize(
    ("check", "changes", "said"),
    [
        ("python", {"python": (3, 12)}, "3.12, expected 3.11"),
        ("packages", {"installed": {"numpy": "1.0", "torch": "2.13.0"}}, "numpy 1.0, locked 2.4.0"),
        ("packages", {"installed": {"numpy": "2.4.0", "torch": None}}, "torch missing"),
        ("memory", {"memory": 2 * 10**9}, "2.0 GB, expected"),
        ("disk", {"disk": 10**8}, "0.1 GB free, expected"),
        ("index", {"index": "http://127.0.0.1:9/simple"}, "does not answer"),
        ("dvc", {"locked_by": True}, "another process"),
        ("mlflow", {"mlflow_answers": False}, "does not answer"),
        ("prefect", {"prefect": "http://127.0.0.1:9/api", "prefect_answers": False}, "not answer"),
    ],
)
def test_what_would_stop_the_main_job(check: str, changes: dict[str, Any], said: str) -> None:
    finding = found(check, **changes)
    assert finding.level == "problem"
    assert said in finding.found
    assert finding.remedy
    assert not healthy(judge(replace(GOOD, **changes), PARAMS))


@pytest.mark.parametrize(
    ("check", "changes", "said"),
    [
        ("bfloat16", {"flags": frozenset({"sse2", "avx2"})}, "falls back to fp32"),
        ("int8", {"flags": frozenset({"sse2", "avx2"})}, "added in 16 bits"),
        ("dvc", {"links": ()}, "can only use copies"),
        ("dvc", {"remote": "far", "remote_says": "refused"}, "remote far does not answer"),
        ("threads", {"cores": 1}, "cores that may be used here: 1"),
        ("browser", {"chromium": False}, "skipped"),
    ],
)
def test_what_is_worth_a_note(check: str, changes: dict[str, Any], said: str) -> None:
    finding = found(check, **changes)
    assert finding.level == "note"
    assert said in finding.found
    assert healthy(judge(replace(GOOD, **changes), PARAMS))


def test_profiles() -> None:
    vnni = settings("profile", "cpu-avx512-vnni")
    assert found("profile", vnni).level == "ok"
    portable = found("profile")
    assert "which runs here, too" in portable.found
    assert portable.remedy == "stillroom compress --set hardware.profile=cpu-avx512-vnni"
    foreign = found("profile", vnni, flags=frozenset({"sse2", "avx2"}))
    assert "this machine is cpu-avx2" in foreign.found
    assert "answer alike" in foreign.found


def test_a_gpu_has_a_profile_beside_the_processors() -> None:
    gpu = settings("profile", "gpu-sm90")
    assert found("profile", gpu, flags=GOOD.flags | {"sm90"}).level == "ok"
    other = found("profile", gpu, flags=GOOD.flags | {"sm80"})
    assert other.level == "note"
    assert "this machine is gpu-sm80; bundles are built for gpu-sm90" in other.found
    assert other.remedy == "stillroom compress --set hardware.profile=gpu-sm80"


@pytest.mark.parametrize(("url", "answers"), [("there", True), ("http://127.0.0.1:9/", False)])
def test_whether_the_remote_answers(tmp_path: Path, url: str, answers: bool) -> None:
    (tmp_path / ".dvc").mkdir()
    config = f"[core]\n    no_scm = true\n    remote = far\n['remote \"far\"']\n    url = {url}\n"
    (tmp_path / ".dvc" / "config").write_text(config, "utf-8")
    said = machine._remote_says(tmp_path)
    assert (said == "") is answers, said


@pytest.mark.parametrize(
    ("configs", "cache"),
    [({}, ".dvc/cache"), ({"config": "../far"}, "far"), ({"config": "/mnt/shared"}, "/mnt/shared"),
     ({"config": "../far", "config.local": "near"}, ".dvc/near")],
)  # fmt: skip
def test_links_are_tried_where_the_cache_is(
    configs: dict[str, str], cache: str, tmp_path: Path
) -> None:
    (tmp_path / ".dvc").mkdir()
    for name, folder in configs.items():
        (tmp_path / ".dvc" / name).write_text(f"[cache]\n    dir = {folder}\n", "utf-8")
    assert machine._dvc_cache(tmp_path) == cache
    if not cache.startswith("/"):
        assert "symlink" in list(machine._links(tmp_path))
        assert (tmp_path / cache).is_dir()
        assert not list(tmp_path.rglob(".doctor"))


@pytest.mark.parametrize(("content", "opens"), [(None, True), (b"", True), (b"SQLite" * 99, False)])
def test_whether_the_store_opens(tmp_path: Path, content: bytes | None, opens: bool) -> None:
    if content is not None:
        (tmp_path / "mlflow.db").write_bytes(content)
    assert machine._sqlite_opens(f"sqlite:///{tmp_path}/mlflow.db") is opens


def test_an_engine_is_missed_only_where_it_is_asked_for() -> None:
    assert found("runtimes").level == "ok"
    assert found("runtimes").found == "onnxruntime, openvino (tensorrt: no NVIDIA GPU)"
    asked = parse(
        overlay(read_yaml(ROOT / "params.yaml"), {"quantize": {"runtimes": ["tensorrt"]}})
    )
    assert found("runtimes", asked).level == "note"
    assert "tensorrt: no NVIDIA GPU" in found("runtimes", asked).found


def test_a_gpu_is_missed_only_where_it_is_asked_for() -> None:
    assert found("gpu").level == "ok"
    assert found("gpu", settings("device", "cuda")).level == "problem"
    built = {"numpy": "2.4.0", "torch": "2.13.0+cu130"}
    asked, there = settings("device", "cuda"), {"gpu": "NVIDIA H100"}
    assert found("gpu", asked, **there, installed=built).level == "ok"
    assert "without CUDA" in found("gpu", asked, **there).found


def test_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    machine = look(ROOT)
    assert len(machine.locked) > 200
    assert "symlink" in machine.links
    assert not machine.prefect_answers
    assert not healthy(judge(machine, PARAMS))
    shell = Shell(tmp_path)
    done = shell.stillroom("doctor", "--json")
    assert done.code == 5
    schema = json.loads((ROOT / "infra/schemas/doctor.schema.json").read_text("utf-8"))
    jsonschema.validate(done.json, schema)
    assert done.json["ok"] is False
    assert "\x1b[" not in shell.stillroom("doctor").out, "colours only on a terminal"
    assert report(judge(machine, PARAMS))["profile"] == done.json["profile"]
