"""Energy-to-solution: what the pipeline spent, and after how many answers it is earned back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.evaluation.energy import NOT_MEASURED, Energy


def stage_energy(metrics: Path, stages: Sequence[str]) -> list[dict[str, Any]]:
    """What each stage left of its last real run, from ``metrics/<stage>.runtime.json``.

    Read as it lies there: a stage that was up to date paid at another time, and nothing decides
    on it. A stage without a file, or without a figure, is left out.
    """
    rows = []
    for stage in stages:
        file = metrics / f"{stage}.runtime.json"
        if not file.is_file():
            continue
        found = json.loads(file.read_text("utf-8"))
        if found.get("energy_kwh") is not None:
            rows.append({"stage": stage, "kwh": found["energy_kwh"], "seconds": found["work_s"],
                         "method": found["energy_method"]})  # fmt: skip
    return rows


def payback(
    stages: Sequence[Mapping[str, Any]], teacher: Energy, candidate: Energy
) -> dict[str, Any]:
    """Total of the stages, and the answers after which serving the candidate has saved as much.

    Null where energy was not measured, or where the candidate saves nothing.
    """
    total = sum(stage["kwh"] for stage in stages) if stages else None
    saved = after = None
    if teacher.kwh_per_1k is not None and candidate.kwh_per_1k is not None:
        saved = teacher.kwh_per_1k - candidate.kwh_per_1k
        if total is not None and saved > 0:
            after = 1000 * total / saved
    methods = sorted({str(stage["method"]) for stage in stages} | {candidate.method})
    measured = [method for method in methods if method != NOT_MEASURED] or [NOT_MEASURED]
    return {"stages": [dict(stage) for stage in stages], "pipeline_kwh": total,
            "saved_kwh_per_1k": saved, "pays_back_after_predictions": after,
            "method": ", ".join(measured)}  # fmt: skip
