"""What a run was made from: commit, dirty or not, lock, machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

from flows import dvc
from tasks import home
from tasks.hardware import detect_profile
from tasks.schema import Promotion
from tasks.stage_files import read_json

PACKAGES = ("torch", "transformers", "onnxruntime", "tokenizers", "dvc", "mlflow", "prefect")


def commit(root: Path) -> tuple[str, bool]:
    """The commit of a working tree and whether it was changed since; else ``("none", True)``.

    Files that git ignores do not count, nor what a run itself writes: ``dvc.lock``,
    ``metrics/`` and ``reports/``.
    """
    try:
        head = _git(root, "rev-parse", "HEAD")
        status = _git(root, "status", "--porcelain", "--", ".", ":!dvc.lock", ":!metrics",
                      ":!reports")  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "none", True
    return head, bool(status)


def tags(root: Path) -> dict[str, Any]:
    """Commit and dirtiness of a run, for MLflow. A mirror has those of the checkout."""
    head, dirty = commit(root if (root / ".git").exists() else home.CHECKOUT)
    return {"commit": head, "dirty": str(dirty).lower()}


def release(root: Path, promotion: Promotion) -> dict[str, Any]:
    """The registry's ``release.json``: what is true of this build and not of its bytes.

    Args:
        root: where the run was.
        promotion: what the version is held to when it is promoted.
    """
    from tasks.stage import machine

    lock = root / "dvc.lock"
    summary = read_json(root / "reports" / "summary.json")
    facts = tags(root)
    return {
        "commit": facts["commit"],
        "dirty": facts["dirty"] == "true",
        "dvc_lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None,
        "machine": machine(),
        "machine_profile": detect_profile(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "latency": [
            {
                "stage": row.get("stage"),
                "latency_ms": row.get("latency_ms"),
                "cold_start_ms": row.get("cold_start_ms"),
                "throughput_per_s": row.get("throughput_per_s"),
            }
            for row in summary.get("stages", [])
            if row.get("latency_ms")
        ],
        "ratios": summary.get("ratios", {}),
        "promotion": promotion.model_dump(mode="json"),
        "cost": costs(root),
    }


def costs(root: Path) -> list[dict[str, Any]]:
    """Time and energy of each stage's last run, with the method; not of the model card, which
    is the same for the same model.
    """
    found = []
    for stage in dvc.stages(root):
        runtime = read_json(root / "metrics" / f"{stage}.runtime.json")
        if runtime:
            keys = ("work_s", "cpu_s", "peak_memory_bytes", "energy_kwh", "energy_method")
            found.append({"stage": stage, **{key: runtime.get(key) for key in keys}})
    return found


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip()
