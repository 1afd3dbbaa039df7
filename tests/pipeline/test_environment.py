"""The lock: what it names is what is installed, and the four tools really start with it."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tests.conftest import ROOT, Shell

LOCK = (ROOT / "infra" / "requirements.lock").read_text("utf-8")
PINS = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", LOCK, re.M))


def test_every_package_is_pinned_with_hashes() -> None:
    entries = re.split(r"\n(?=[A-Za-z0-9])", LOCK.strip())
    assert len(entries) == len(PINS) > 200
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "torch" not in PINS, "torch comes first, on its own: see the Makefile"
    assert "http" not in re.sub(r"^\S+==.*", "", LOCK, flags=re.M)


def test_what_is_installed_is_what_is_locked() -> None:
    found = {}
    for name in PINS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    assert found == PINS
    assert version("torch").partition("+")[0] == "2.13.0"


def test_every_dependency_of_the_project_is_locked() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=!~\[;]", line)[0].strip().lower() for line in wanted} - {"torch"}
    assert names <= {name.lower() for name in PINS}


FLOW = """
from prefect import flow, task
@task
def double(x: int) -> int:
    return 2 * x
@flow
def add(x: int) -> int:
    return double(x) + 1
assert add(20) == 41
"""
REGISTRY = """
import mlflow
from mlflow import MlflowClient
mlflow.set_tracking_uri("sqlite:///registry.db")
client = MlflowClient()
client.create_registered_model("m")
version = client.create_model_version("m", source="file:///tmp/none").version
client.set_registered_model_alias("m", "champion", version)
assert client.get_model_version_by_alias("m", "champion").version == version
"""
SESSION = """
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper
x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString())
assert session.run(None, {"x": np.ones(3, np.float32)})[0].tolist() == [-1.0] * 3
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", [FLOW, REGISTRY, SESSION], ids=["prefect flow", "mlflow registry", "onnx session"]
)
def test_it_starts(tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "script.py").write_text(script)
    done = Shell(tmp_path)(sys.executable, "script.py", cwd=tmp_path)
    assert done.code == 0, done.err


def test_dvc_reproduces(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  copy:\n    cmd: cp a b\n    deps: [a]\n    outs: [b]\n"
    )
    (tmp_path / "a").write_text("content")
    for command in (["init", "--no-scm", "-q"], ["repro"]):
        done = shell("dvc", *command, cwd=tmp_path)
        assert done.code == 0, done.err
    assert (tmp_path / "b").read_text() == "content"
