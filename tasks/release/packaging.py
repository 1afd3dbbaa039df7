"""What becomes a version: which bundle is admissible, and what is laid beside it.

A version is a logged MLflow model:

    MLmodel, pyfunc_model.py     how MLflow loads it (tasks/release/pyfunc_model.py)
    code/tasks/...               the loader and what it imports, so that no project is needed
    artifacts/bundle/            the bundle, byte for byte
    documents/                   verdict, params, dvc.lock, report, release.json
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.errors import GateRefused, IntegrityError, UnavailableError, UsageError
from tasks.files import write_json
from tasks.home import CHECKOUT
from tasks.release.gate import within
from tasks.release.servable import (
    Servable,
    artifact_sha256,
    file_hashes,
    serving_files,
)

MODEL_CODE = CHECKOUT / "tasks/release/pyfunc_model.py"
LOADER = (
    "tasks/__init__.py",
    "tasks/errors.py",
    "tasks/files.py",
    "tasks/gpu.py",
    "tasks/hardware.py",
    "tasks/home.py",
    "tasks/processor.py",
    "tasks/release/__init__.py",
    "tasks/release/foreign.py",
    "tasks/release/servable.py",
    "tasks/release/soundness.py",
    "tasks/release/stages.py",
    "tasks/runtimes/__init__.py",
    "tasks/runtimes/interface.py",
    "tasks/runtimes/onnx.py",
    "tasks/runtimes/openvino.py",
    "tasks/runtimes/tensorrt.py",
)
"""The import closure of the model's code; a test asserts that it is one."""
REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "tokenizers")
SMOKE_TEXT = "where is my card?"


def admissible(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle that may be registered.

    Raises:
        UsageError: there is no bundle.
        GateRefused: its manifest holds no passing verdict.
        IntegrityError: its files are not those of the manifest, or of the verdict.
    """
    file = bundle / "manifest.json"
    names = serving_files(bundle)
    missing = [n for n in (*names, "manifest.json") if not (bundle / n).is_file()]
    if missing:
        raise UsageError(
            f"{bundle}: found no {', '.join(missing)}, expected a bundle",
            next_command="stillroom compress",
        )
    try:
        manifest: dict[str, Any] = json.loads(file.read_text("utf-8"))
        recorded = {name: manifest["files"][name] for name in names}
        whole = manifest["artifact_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{file}: found no manifest ({type(error).__name__}: {error}), "
            "expected the hash of each servable file",
            next_command="dvc repro deploy",
        ) from None
    found = file_hashes(bundle)
    for name, digest in found.items():
        if digest != recorded[name]:
            raise IntegrityError(
                f"{bundle / name}: found sha256 {digest[:16]}, expected {str(recorded[name])[:16]} "
                "as in manifest.json",
                next_command="dvc checkout --force data/models/deploy",
            )
    if artifact_sha256(found) != whole:
        raise IntegrityError(
            f"{file}: found artifact_sha256 {str(whole)[:16]}, "
            f"expected {artifact_sha256(found)[:16]} over its files",
            next_command="dvc repro deploy",
        )
    check_verdict(manifest)
    return manifest


def check_verdict(manifest: Mapping[str, Any]) -> None:
    """Let a manifest with a passing verdict on its own files through.

    Raises:
        GateRefused: there is no verdict, or it is no; names the failing checks.
        IntegrityError: the verdict is about other files, or not what its own figures say.
    """
    verdict = manifest.get("gate") or {}
    if verdict.get("passed") is not True:
        failing = [
            f"{check['metric']} {check['value']} ({check['kind']} {check['limit']})"
            for check in verdict.get("checks", [])
            if not check.get("passed")
        ]
        raise GateRefused(
            f"gate: found {'; '.join(failing) or 'no verdict'}, expected a passing verdict",
            next_command="stillroom report",
        )
    if verdict.get("artifact_sha256") != manifest["artifact_sha256"]:
        raise IntegrityError(
            f"gate: found a verdict on {str(verdict.get('artifact_sha256'))[:16]}, "
            f"expected one on {manifest['artifact_sha256'][:16]}",
            next_command="dvc repro validate deploy",
        )
    for check in verdict.get("checks", []):
        value = check.get("value")
        if value is None or not within(check["kind"], value, check["limit"]):
            raise IntegrityError(
                f"gate: found a verdict that passes with {check['metric']} {value} "
                f"({check['kind']} {check['limit']}), expected one that follows from its figures",
                next_command="dvc repro --force validate deploy",
            )


def check_documents(documents: Mapping[str, Path]) -> None:
    """Refuse a document that is not there.

    Raises:
        UnavailableError: names it.
    """
    for name, path in documents.items():
        if not path.is_file():
            raise UnavailableError(
                f"{path}: found no file, expected {name} to keep with the version",
                next_command="dvc repro",
            )


def smoke(folder: Path) -> None:
    """Load a bundle as serving does and answer one request.

    Raises:
        IntegrityError: it does not load, or what it answers is no label with a score.
    """
    servable = Servable(folder)
    (answer,) = servable.predict([SMOKE_TEXT])
    servable.close()
    if not (math.isfinite(answer.score) and 0.0 <= answer.score <= 1.0):
        raise IntegrityError(
            f"{folder}: found score {answer.score} for {SMOKE_TEXT!r}, expected one in [0, 1]",
            next_command="stillroom compress --promote",
        )


def check_kin(candidate: Path, champion: Path, *, name: str, version: int) -> None:
    """Two data sets may have files of one name, and so one model's name.

    Args:
        candidate, champion: bundles.

    Raises:
        UsageError: they have no label in common.
    """
    own, theirs = (json.loads((one / "labels.json").read_text("utf-8"))
                   for one in (candidate, champion))  # fmt: skip
    if set(own).isdisjoint(theirs):
        raise UsageError(
            f"{name} version {version}: found none of the champion's labels in it (it has "
            f"{own[0]!r}, the champion {theirs[0]!r}), expected another version of the same "
            "classifier: another data set needs another release.name",
            next_command=f"stillroom promote --model {name} --version {version} --yes"
            "  # if it is to take the champion's place all the same",
        )


def copy_bundle(bundle: Path, to: Path) -> None:
    """Copy the files of a bundle, following links: a cache may have linked them."""
    to.mkdir(parents=True)
    for file in sorted(bundle.iterdir()):
        if file.is_file():
            shutil.copyfile(file, to / file.name)


def lay_code(folder: Path) -> Path:
    """Copy the loader into ``folder/tasks``, nothing else of the project with it."""
    for name in LOADER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKOUT / name, folder / name)
    return folder / "tasks"


def lay_documents(folder: Path, documents: Mapping[str, Path], release: Mapping[str, Any]) -> None:
    """Copy the documents of a version and write its ``release.json``."""
    folder.mkdir(parents=True)
    for name, path in documents.items():
        shutil.copyfile(path, folder / name)
    if "release.json" not in documents:
        write_json(folder / "release.json", dict(release))


def requirements() -> list[str]:
    """What the model needs where it is loaded, at the versions of this environment."""
    return [f"{name}=={version(name)}" for name in REQUIREMENTS]
