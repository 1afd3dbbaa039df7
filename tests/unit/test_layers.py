"""Who may import whom, and that ``dvc.yaml`` says what the code says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("fetch", "prepare", "baseline", "teach", "distill", "prune", "finetune", "quantize",
          "validate", "deploy")  # fmt: skip
SCHEMA = {Path("tasks/params.py"), *(p.relative_to(ROOT) for p in ROOT.glob("tasks/schema*.py"))}
"""Stages depend on values."""
DAG = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
SOURCES = sorted(p.relative_to(ROOT) for d in ("flows", "tasks") for p in (ROOT / d).rglob("*.py"))


ENGINES = ("onnxruntime", "openvino", "tensorrt", "cuda")


def imported(source: Path) -> set[str]:
    """Names of all modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / source).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(names: set[str]) -> set[Path]:
    """Files of the project among imported names."""
    paths = {Path(name.replace(".", "/") + ".py") for name in names}
    return {path for path in paths if path in SOURCES}


def closure(source: Path) -> set[Path]:
    todo, seen = [source], set[Path]()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += files(imported(path))
    return seen


def chain(node: ast.AST) -> str:
    """``params.data.max_length`` of nested attributes, "" for anything else."""
    if isinstance(node, ast.Attribute):
        inner = chain(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


def params_read(source: Path) -> set[str]:
    """The keys of params that a stage reads, aliases of a section followed."""
    tree = ast.parse((ROOT / source).read_text("utf-8"))
    alias, aliased = {"params": ""}, set[ast.AST]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets = node.targets[0]
            pairs = (
                zip(targets.elts, node.value.elts, strict=False)
                if isinstance(targets, ast.Tuple) and isinstance(node.value, ast.Tuple)
                else [(targets, node.value)]
            )
            for target, value in pairs:
                path = chain(value)
                if isinstance(target, ast.Name) and path.startswith("params."):
                    alias[target.id] = path.removeprefix("params.")
                    aliased.add(value)
    found = set()
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        outermost = not isinstance(parents.get(node), ast.Attribute)
        path = chain(node)
        name, _, rest = path.partition(".")
        if node in aliased:
            continue
        if isinstance(node, ast.Attribute) and outermost and name in alias:
            found.add(".".join(part for part in (alias[name], rest) if part))
    return found


def test_the_dag_has_the_ten_stages_in_order() -> None:
    assert tuple(DAG) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_import_closure(stage: str) -> None:
    declared = {Path(d) for d in DAG[stage]["deps"] if d.endswith(".py")}
    needed = closure(Path(f"tasks/{stage}.py")) - SCHEMA
    assert declared == needed


@pytest.mark.parametrize("stage", STAGES)
def test_declared_params_cover_what_the_stage_reads(stage: str) -> None:
    declared = DAG[stage]["params"]
    read = params_read(Path(f"tasks/{stage}.py"))
    methods = {"model_dump"}
    for key in read - methods:
        path = ".".join(part for part in key.split(".") if part not in methods)
        covered = any(path == d or path.startswith(f"{d}.") for d in declared)
        assert covered, f"{stage} reads {path}, dvc.yaml declares {declared}"
    if stage not in ("fetch", "prepare", "deploy"):  # these run no torch
        assert "hardware.threads" in declared or "hardware" in declared


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_imports_point_one_way(source: Path) -> None:
    stages = {Path(f"tasks/{stage}.py") for stage in STAGES}
    mine = files(imported(source))
    if source.parts[0] == "tasks":
        assert not {path for path in mine if path.parts[0] == "flows"}
    if source.parts[0] == "tasks" and source not in stages:
        assert not mine & stages, "packages never import a stage"
    if source in stages:
        assert not (mine & stages) - {source}, "stages do not import each other"


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_owners(source: Path) -> None:
    roots = {name.partition(".")[0] for name in imported(source)}
    place = source.as_posix()
    if place.startswith("flows"):
        assert not roots & {"torch", "transformers", *ENGINES}
    if place.startswith("tasks"):
        assert "prefect" not in roots
    if place not in ("tasks/tracking.py", "tasks/release/pyfunc_model.py") and not place.startswith(
        "tasks/release/registry"
    ):
        assert "mlflow" not in roots
    if not place.startswith("tasks/runtimes/"):
        sessions = {n for n in imported(source) if n.startswith(ENGINES)}
        converters = ("onnxruntime.quantization", "onnxruntime.transformers.float16")
        assert not {n for n in sessions if not n.startswith(converters)}


@pytest.mark.parametrize("source", [s for s in SOURCES if s.name == "__init__.py"], ids=str)
def test_packages_have_no_code_of_their_own(source: Path) -> None:
    """So that ``__init__.py`` need not be a dependency of any stage."""
    body = ast.parse((ROOT / source).read_text("utf-8")).body
    code = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    if source == Path("tasks/__init__.py"):
        said = ast.unparse(
            ast.Module(code, [])
        )  # the two switches that must come before torch is imported
        assert "GOMP_SPINCOUNT" in said
        assert len(code) == 5
    else:
        assert not code


@pytest.mark.parametrize("module", ["tasks.release.servable", "tasks.release.champion"])
def test_serving_imports_no_training_library(module: str) -> None:
    """The loader works where torch, transformers, mlflow and prefect are not installed."""
    heavy = ("torch", "transformers", "mlflow", "prefect", "datasets", "pandas")
    blocked = f"import sys; sys.modules.update(dict.fromkeys({heavy!r})); import {module}"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True,
                          cwd=ROOT, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_files_and_functions_stay_readable() -> None:
    for source in SOURCES:
        text = (ROOT / source).read_text("utf-8")
        assert text.count("\n") <= 460, f"{source}: too long"
    assert (ROOT / "tasks/prune.py").read_text("utf-8").count("\n") < 150


def test_every_error_names_the_next_command() -> None:
    """Unless it is handed on as it came: `from_dict`, and errors with a computed one."""
    kinds = {"StillroomError", "UsageError", "ParamsError", "DataError", "GateRefused",
             "IntegrityError", "UnavailableError"}  # fmt: skip
    for source in SOURCES:
        for node in ast.walk(ast.parse((ROOT / source).read_text("utf-8"))):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and chain(call.func) in kinds:
                given = {keyword.arg for keyword in call.keywords}
                assert "next_command" in given, f"{source}:{node.lineno}"
