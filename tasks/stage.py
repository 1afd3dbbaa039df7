"""What every stage has in common: params in, metrics out, one clear error.

    if __name__ == "__main__":
        run("prune", main)

writes ``metrics/prune.json`` (what ``main`` returns: numbers that depend on params and
inputs alone), ``metrics/prune.runtime.json`` (time, memory, energy of this run, and what
``main`` returns under ``runtime``) or ``metrics/prune.error.json``.
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from tasks.errors import GateRefused, StillroomError, UnavailableError
from tasks.evaluation.energy import StageEnergy
from tasks.evaluation.footprint import peak_memory_bytes
from tasks.files import write_json, write_text
from tasks.params import load
from tasks.paths import METRICS
from tasks.schema import Params

Metrics = dict[str, Any]
CURVE = ("step", "train_loss", "validation_loss", "validation_accuracy")


def run(name: str, main: Callable[[Params], Metrics]) -> None:
    """Run one stage in this process and exit with its code."""
    gc.enable()
    gc.freeze()
    started = time.time()
    startup_s = started - psutil.Process().create_time()
    error_file = METRICS / f"{name}.error.json"
    error_file.unlink(missing_ok=True)
    try:
        params = load(Path("params.yaml"))
        use_threads(params.hardware.threads)
        discard_outputs(name)  # as DVC does: they may be links into its cache
        with StageEnergy("DEU") as energy:  # kWh only: the grid's carbon does not matter here
            metrics = main(params)
    except (StillroomError, OSError) as caught:
        error = caught if isinstance(caught, StillroomError) else unavailable(name, caught)
        if not isinstance(error, GateRefused):  # what a limit refused is whole, and worth a look
            discard_outputs(name)
        write_json(error_file, error.as_dict())
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    work_s = time.time() - started
    runtime = metrics.pop("runtime", {})
    write_json(METRICS / f"{name}.json", {"stage": name, **finite(metrics)})
    write_json(
        METRICS / f"{name}.runtime.json",
        {
            "stage": name,
            "started_at": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            "startup_s": round(startup_s, 3),
            "work_s": round(work_s, 3),
            "cpu_s": round(sum(os.times()[:4]), 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "energy_kwh": energy.kwh,
            "energy_method": energy.method,
            "machine": machine(),
            **runtime,
        },
    )
    say(f"{name}: done in {work_s:.1f} s")
    sys.stderr.flush()
    os._exit(0)  # everything is written; taking torch down piece by piece takes over a second


def finite(tree: Any) -> Any:
    """The same with None for every number that is NaN or infinite: JSON knows neither."""
    if isinstance(tree, Mapping):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def discard_outputs(name: str) -> None:
    """Remove a stage's outputs: those of an earlier run, or what a failed one has written."""
    for out in yaml.safe_load(Path("dvc.yaml").read_text("utf-8"))["stages"][name].get("outs", []):
        path = Path(next(iter(out)) if isinstance(out, dict) else out)
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def unavailable(name: str, error: OSError) -> UnavailableError:
    """What the operating system refused, as an error with a next command."""
    return UnavailableError(
        f"{name}: {error.filename or 'the system'}: {error.strerror or error}",
        next_command="df -h . && ls -l",
    )


def use_threads(count: int) -> None:
    """Give torch, where a stage has imported it, the number of threads that params name."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)


def machine() -> dict[str, Any]:
    """Facts about this host that a latency figure is worth nothing without.

    Cores are those that the process may use: a container often has fewer than the host.
    """
    import joblib

    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "cpu": cpu,
        "cores": joblib.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
    }


def read_metrics(name: str) -> Metrics:
    """What an earlier stage measured: the numbers that decide are computed once."""
    return json.loads((METRICS / f"{name}.json").read_text("utf-8"))


def say(text: str) -> None:
    """One line of progress, seen at once also through a pipe."""
    print(text, flush=True)


def write_history(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace ``metrics/<name>.history.jsonl``, a curve that others may follow as it grows.

    Beside it ``metrics/<name>.curve.csv`` has a line for each look at validation: DVC plots
    no JSON lines.
    """
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_text(METRICS / f"{name}.history.jsonl", lines)
    points = [",".join(map(str, point)) for point in curve(rows)]
    write_text(METRICS / f"{name}.curve.csv", "\n".join([",".join(CURVE), *points]) + "\n")


def curve(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...]]:
    """Step, latest training loss, validation loss and accuracy at each look at validation."""
    points: list[tuple[float, ...]] = []
    loss = float("nan")
    for row in rows:
        loss = row.get("loss", loss)
        if "eval_loss" in row:
            points.append((row["step"], loss, row["eval_loss"], row["eval_accuracy"]))
    return points
