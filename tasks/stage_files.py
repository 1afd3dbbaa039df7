"""What stages have left on disk, read for those who tell of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml


def stage_params(root: Path, stage: str) -> dict[str, Any]:
    """The parameters that ``dvc.lock`` names for a stage."""
    try:
        lock = yaml.safe_load((root / "dvc.lock").read_text("utf-8"))
        return dict(lock["stages"][stage].get("params", {}).get("params.yaml", {}))
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return {}


def parquet_facts(path: Path) -> tuple[int, str]:
    """Rows and sha256 of a Parquet file."""
    from pyarrow.parquet import read_metadata  # half a second, for this alone

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return int(read_metadata(path).num_rows), digest


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or being written."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; empty where it is missing, without a last line that is cut off."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, json.JSONDecodeError):
        for line in path.read_text("utf-8").splitlines():
            rows.append(json.loads(line))
    return rows
