"""The verdict: what was measured against the limits in params, and nothing else.

Pure functions; a figure that is missing, NaN or infinite fails its check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tasks import schema
from tasks.errors import GateRefused

Kind = Literal["max", "min"]
ROUNDING = 9
"""Decimals in which a figure is compared with its limit."""


@dataclass(frozen=True)
class Evidence:
    """What the test split and the servable files said. Drops are in points of 100."""

    drop: float | None
    """Of the primary metric, teacher minus candidate."""
    drop_upper95: float | None
    """Upper end of its paired-bootstrap interval."""
    macro_f1_drop: float | None
    class_drop: float | None
    """Worst class, after shrinkage and correction: `ClassDrops.worst_drop`."""
    ece: float | None
    bytes: int | None
    """Of all servable files."""
    parity: float | None
    """Share of texts on which the servable files answer as the model they were made from."""
    artifact_sha256: str
    """Of the servable files that were judged."""
    detectable_drop: float | None
    """Smallest drop that this test split can show, in points; informs, decides nothing."""


@dataclass(frozen=True)
class Check:
    """One figure against one limit; `gate.<kind>_<metric>` in params."""

    metric: str
    kind: Kind
    value: float | None
    limit: float
    passed: bool

    def as_dict(self) -> dict[str, Any]:
        """One entry of ``checks`` in ``metrics/gate.json``."""
        return {
            "metric": self.metric,
            "kind": self.kind,
            "value": self.value,
            "limit": self.limit,
            "passed": self.passed,
        }

    def __str__(self) -> str:
        found = "nothing" if self.value is None else f"{self.value:g}"
        if self.metric == "bytes" and self.value is not None:
            found = f"{self.value:,.0f}"
        limit = f"{self.limit:,.0f}" if self.metric == "bytes" else f"{self.limit:g}"
        bound = "at most" if self.kind == "max" else "at least"
        return (
            f"{self.metric}: found {found}, gate.{self.kind}_{self.metric} allows {bound} {limit}"
        )


@dataclass(frozen=True)
class Verdict:
    """All checks on one artifact."""

    checks: tuple[Check, ...]
    artifact_sha256: str
    detectable_drop: float | None

    @property
    def passed(self) -> bool:
        """Every check passed, and there was one."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def as_dict(self) -> dict[str, Any]:
        """The content of ``metrics/gate.json``."""
        return {
            "passed": self.passed,
            "checks": [check.as_dict() for check in self.checks],
            "artifact_sha256": self.artifact_sha256,
            "detectable_drop": self.detectable_drop,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Verdict:
        """Read ``metrics/gate.json``; `passed` follows from the checks, not from the record."""
        return cls(
            checks=tuple(Check(**check) for check in record["checks"]),
            artifact_sha256=record["artifact_sha256"],
            detectable_drop=record["detectable_drop"],
        )

    def require(self) -> None:
        """Return when all passed.

        Raises:
            GateRefused: names every failing check, its value and its limit.
        """
        if not self.passed:
            reasons = "; ".join(str(check) for check in self.failures) or "no check was made"
            raise GateRefused(
                f"the gate refused the candidate: {reasons}", next_command="stillroom report"
            )


def judge(evidence: Evidence, limits: schema.Gate) -> Verdict:
    """Compare every figure with its limit; a figure equal to its limit passes."""
    checks = (
        _check("drop", "max", evidence.drop, limits.max_drop),
        _check("drop_upper95", "max", evidence.drop_upper95, limits.max_drop_upper95),
        _check("macro_f1_drop", "max", evidence.macro_f1_drop, limits.max_macro_f1_drop),
        _check("class_drop", "max", evidence.class_drop, limits.max_class_drop),
        _check("ece", "max", evidence.ece, limits.max_ece),
        _check("bytes", "max", evidence.bytes, limits.max_bytes),
        _check("parity", "min", evidence.parity, limits.min_parity),
    )
    return Verdict(checks, evidence.artifact_sha256, _finite(evidence.detectable_drop))


def stage_limit(
    stage: Literal["distill", "prune", "finetune"],
    teacher_quality: Mapping[str, float],
    stage_quality: Mapping[str, float],
    limit: float,
    *,
    primary: str = "accuracy",
) -> float:
    """Drop of the primary metric on validation against the teacher, in points, if tolerable.

    Args:
        limit: `gate.stage_drop.<stage>`.

    Raises:
        GateRefused: the drop is above `gate.stage_drop.<stage>`, or cannot be computed.
    """
    teacher, found = teacher_quality.get(primary, math.nan), stage_quality.get(primary, math.nan)
    drop = 100.0 * (teacher - found)
    if within("max", drop, limit):
        return drop
    raise GateRefused(
        f"{stage}: {primary} on validation is {found:.4f}, the teacher's {teacher:.4f}: "
        f"found a drop of {drop:.2f} points, gate.stage_drop.{stage} allows at most {limit:g}",
        next_command=_next_command(stage, drop),
    )


def _next_command(stage: str, drop: float) -> str:
    """A run in a workspace of its own: past the limit, or away from what gave no number."""
    if math.isfinite(drop):
        limit = math.ceil(round(drop, ROUNDING))
        return f"stillroom compress --set gate.stage_drop.{stage}={limit}"
    key = "prune.importance=magnitude" if stage == "prune" else f"{stage}.training.precision=fp32"
    return f"stillroom compress --set {key}"


def _check(metric: str, kind: Kind, value: float | None, limit: float) -> Check:
    value = _finite(value)
    return Check(metric, kind, value, limit, value is not None and within(kind, value, limit))


def within(kind: Kind, value: float, limit: float) -> bool:
    """Whether a figure keeps its limit, an upper (``max``) or a lower one."""
    # 100 * (0.93 - 0.91) is a little over 2; written so that NaN is within nothing
    value = round(value, ROUNDING)
    return value <= limit if kind == "max" else value >= limit


def _finite(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(value)
