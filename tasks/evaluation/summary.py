"""`reports/summary.json`: one row for each model, and the ratios of teacher over candidate.

All figures come in; nothing is measured here and nothing is computed twice. Size, speed and
energy are ratios of the very figures in the rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.evaluation.energy import Energy
from tasks.evaluation.latency import ColdStart, LatencyRow
from tasks.evaluation.statistics import Interval

TEACHER, LINEAR, CANDIDATE = "teacher", "linear", "deploy"


@dataclass(frozen=True)
class Row:
    """One model of the report. Quality and bytes always, the rest where it was measured."""

    stage: str
    quality: Mapping[str, float]
    file_bytes: int
    """All files that answering needs."""
    parameters: int | None = None
    flops: int | None = None
    """Per text, mean."""
    latency: LatencyRow | None = None
    """Batch 1, one thread, text in, label out."""
    cold: ColdStart | None = None
    energy: Energy | None = None

    def as_dict(self) -> dict[str, Any]:
        """One entry of ``stages`` in `reports/summary.json`; what is not finite becomes null."""
        latency, cold, energy = self.latency, self.cold, self.energy
        return {
            "stage": self.stage,
            "quality": {name: _finite(value) for name, value in self.quality.items()},
            "file_bytes": self.file_bytes,
            "parameters": self.parameters,
            "flops": self.flops,
            "latency_ms": latency and {"p50": latency.p50, "p95": latency.p95, "p99": latency.p99},
            "cold_start_ms": cold and cold.ms,
            "throughput_per_s": latency and latency.throughput_per_s,
            "peak_memory_bytes": cold and cold.peak_memory_bytes,
            "energy_kwh_per_1k": energy and energy.kwh_per_1k,
            "co2e_g_per_1k": energy and energy.co2e_g_per_1k,
            "energy_method": energy and energy.method,
        }


def summary(
    rows: Sequence[Row],
    *,
    gate: Mapping[str, Any],
    n: int,
    retained: Interval,
    onnx_fp32_p50: float | None,
    evidence: Mapping[str, Any] | None = None,
    primary: str = "accuracy",
    split: str = "test",
) -> dict[str, Any]:
    """The content of `reports/summary.json`.

    Args:
        rows: the teacher first, then the linear model, the stages, last the candidate.
        gate: the verdict, as in `metrics/gate.json`.
        n: rows of the split.
        retained: the candidate's primary metric as a share of the teacher's.
        onnx_fp32_p50: the teacher on ONNX Runtime fp32, ms at batch 1.
        evidence: `tasks.evaluation.evidence`; none where it was not gathered.

    Raises:
        ValueError: the first row is not the teacher or the last not the candidate.
    """
    found = [row.as_dict() for row in rows]
    ends = [row["stage"] for row in (found[0], found[-1])] if found else []
    if ends != [TEACHER, CANDIDATE]:
        raise ValueError(f"found rows from {ends}, expected from {TEACHER} to {CANDIDATE}")
    return {
        "primary": primary,
        "split": split,
        "n": n,
        "stages": found,
        "ratios": ratios(found[0], found[-1], retained=retained, onnx_fp32_p50=onnx_fp32_p50),
        "gate": dict(gate),
        **({} if evidence is None else {"evidence": dict(evidence)}),
    }


def ratios(
    teacher: Mapping[str, Any],
    candidate: Mapping[str, Any],
    *,
    retained: Interval,
    onnx_fp32_p50: float | None,
) -> dict[str, Any]:
    """Teacher over candidate; null where a figure is missing.

    ``speed_p50`` is the quotient of the two p50 columns, not the median of paired ratios, so
    that a reader can recompute it; `summary.md` gives the paired one beside it.
    """
    own = candidate["latency_ms"] and candidate["latency_ms"]["p50"]
    interval = [_finite(retained.low), _finite(retained.high)]
    return {
        "quality_retained": _finite(retained.point),
        "quality_retained_ci95": None if None in interval else interval,
        "size": _over(teacher["file_bytes"], candidate["file_bytes"]),
        "speed_p50": _over(teacher["latency_ms"] and teacher["latency_ms"]["p50"], own),
        "speed_p50_vs_onnx_fp32": _over(onnx_fp32_p50, own),
        "energy": _over(teacher["energy_kwh_per_1k"], candidate["energy_kwh_per_1k"]),
    }


def beaten_by_linear(summary: Mapping[str, Any]) -> bool:
    """Whether the linear model equals or beats the candidate in quality, bytes and p50."""
    rows = {row["stage"]: row for row in summary["stages"]}
    if LINEAR not in rows:
        return False
    linear, candidate, primary = rows[LINEAR], rows[CANDIDATE], summary["primary"]
    if linear["quality"][primary] is None or candidate["quality"][primary] is None:
        return False
    as_fast = True
    if linear["latency_ms"] and candidate["latency_ms"]:
        as_fast = linear["latency_ms"]["p50"] <= candidate["latency_ms"]["p50"]
    return bool(
        linear["quality"][primary] >= candidate["quality"][primary]
        and linear["file_bytes"] <= candidate["file_bytes"]
        and as_fast
    )


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else _finite(a / b)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
