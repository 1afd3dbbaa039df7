"""The end of a run: the table, what the tools cost, why the gate said no, what to type next."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from flows.console import Progress
from tasks import home
from tasks.stage_files import read_json


def refusal(gate: dict[str, Any]) -> str:
    """One line a failing check."""
    lines = [
        f"    {check['metric']}: found {_number(check['value'])}, expected "
        f"{'at most' if check['kind'] == 'max' else 'at least'} {_number(check['limit'])}"
        for check in gate.get("checks", [])
        if not check["passed"]
    ]
    return "\n".join(["the gate refused the candidate; nothing is registered", *lines])


def plumbing(root: Path, stages_run: Sequence[str]) -> dict[str, float]:
    """What is not the stages' own work: DVC, Prefect, MLflow, registry, process starts, imports.

    Returns:
        ``total_s`` since this process started, ``work_s`` of the stages that ran,
        ``plumbing_s`` the rest, ``share`` of the total in [0, 1].
    """
    total = time.time() - psutil.Process().create_time()
    runtimes = [read_json(root / "metrics" / f"{name}.runtime.json") for name in stages_run]
    work = sum(float(runtime.get("work_s", 0.0)) for runtime in runtimes)
    return {
        "total_s": round(total, 3),
        "work_s": round(work, 3),
        "plumbing_s": round(total - work, 3),
        "share": round((total - work) / total, 4),
    }


def show(outcome: dict[str, Any], progress: Progress, root: Path) -> None:
    """The table, what the tools cost, and what to type next."""
    summary = read_json(root / "reports" / "summary.json")
    if summary and outcome["verdict"]:
        from tasks.evaluation.report import render_terminal

        progress.console.print(render_terminal(summary))
    cost = outcome["plumbing"]
    progress.note(
        f"{cost['total_s']:.1f} s in all: {cost['work_s']:.1f} s the stages' own work, "
        f"{cost['plumbing_s']:.1f} s ({cost['share']:.1%}) DVC, Prefect, MLflow and starts"
    )
    model = f" --model {outcome['model']}"
    if outcome["passed"]:
        promote = "" if outcome["promoted"] else f"  stillroom promote{model}\n"
        progress.note(
            f"next:\n{promote}"
            f'  stillroom predict "where is my card?"{model}\n'
            f'  stillroom rollback{model} --reason "…"'
        )
    progress.note(
        f"  mlflow ui --backend-store-uri {home.tracking_uri()}    # http://127.0.0.1:5000\n"
        f"  PREFECT_HOME={os.environ['PREFECT_HOME']} prefect server start"
        "    # http://127.0.0.1:4200\n"
        "  make up    # both, and the weekly run"
    )


def _number(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
