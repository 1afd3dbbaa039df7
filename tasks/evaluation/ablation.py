"""What each technique of a recipe is worth: intervals over seeds, a table.

Every technique is compared with the full recipe seed by seed. A difference in quality is
*with minus without*, in points of 100; a ratio is *without over with* for bytes and for
latency: above 1 the technique makes the model smaller or faster. Latency enters as a
multiple of the teacher's in the same run, since runs are hours apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from tasks.evaluation.tables import DASH, number

CONFIDENCE = 0.95
Report = dict[str, Any]
Status = Literal["passed", "refused", "stopped", "failed"]


@dataclass(frozen=True)
class Figures:
    """What one finished run has measured, on the bytes that would be served."""

    quality: float
    """Primary metric of the candidate, in [0, 1]."""
    teacher_quality: float
    file_bytes: int
    teacher_bytes: int
    p50_ms: float
    teacher_p50_ms: float
    primary: str = "accuracy"
    n: int = 0
    """Texts that quality was measured on."""

    @property
    def retained(self) -> float:
        """Candidate's quality as a share of the teacher's."""
        return self.quality / self.teacher_quality

    @property
    def size(self) -> float:
        """How many times smaller than the teacher."""
        return self.teacher_bytes / self.file_bytes

    @property
    def speed(self) -> float:
        """How many times faster than the teacher in the same run, p50."""
        return self.teacher_p50_ms / self.p50_ms


@dataclass(frozen=True)
class Run:
    """One variant with one seed. Without figures: stopped by a stage limit, or failed."""

    seed: int
    status: Status
    figures: Figures | None = None
    note: str | None = None
    workspace: str = ""
    """Name of its folder in ``var/workspaces``."""

    def as_dict(self) -> dict[str, Any]:
        """One entry of ``runs`` in ``ablation.json``."""
        names = ("quality", "teacher_quality", "file_bytes", "p50_ms", "retained", "size")
        found: dict[str, Any] = {
            name: None if self.figures is None else getattr(self.figures, name) for name in names
        }
        found["speed_p50"] = None if self.figures is None else self.figures.speed
        return {"seed": self.seed, "status": self.status, "note": self.note,
                "workspace": self.workspace, **found}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """The recipe without one technique, over all seeds tried so far."""

    name: str
    meaning: str
    off: tuple[str, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Spread:
    """A mean over seeds; one seed has no deviation and no interval."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int


def spread(values: Sequence[float]) -> Spread | None:
    """Mean, sample deviation and two-sided 95 % interval of Student's t (Student 1908).

    ``mean ± t_{0.975, n-1} · sd / √n``. None where there are no values.
    """
    if not values:
        return None
    n, mean = len(values), fmean(values)
    if n == 1:
        return Spread(mean, None, None, None, 1)
    sd = stdev(values)
    half = t_quantile(n - 1) * sd / math.sqrt(n)
    return Spread(mean, sd, mean - half, mean + half, n)


def geometric(ratios: Sequence[float]) -> Spread | None:
    """As `spread`, of the logarithms: a geometric mean, as 2× and 0.5× should balance.

    ``sd`` is that of the logarithms, turned into a factor.
    """
    found = spread([math.log(ratio) for ratio in ratios])
    if found is None:
        return None
    mean, sd, low, high = (
        None if value is None else math.exp(value)
        for value in (found.mean, found.sd, found.low, found.high)
    )
    return Spread(mean or 0.0, sd, low, high, found.n)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with so many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


def ablation(
    full: Sequence[Run],
    variants: Sequence[Variant],
    *,
    recipe: str | None,
    overrides: Sequence[str],
    split: str,
    seeds: Sequence[int],
    left_out: Mapping[str, str] | None = None,
    complete: bool = True,
    by: str = "seed",
) -> Report:
    """The content of ``ablation.json``.

    Args:
        full: the runs of the whole recipe.
        variants: the runs without one technique each.
        seeds: values of ``student_seed``, or of ``data.fold``, that were asked for.
        left_out: why a technique that may be on is not here, by name.
        complete: every run that was asked for has been made.
        by: what runs of a variant differ in, ``seed`` or ``fold``.
    """
    first = next((run.figures for run in full if run.figures is not None), None)
    return {
        "recipe": recipe,
        "overrides": list(overrides),
        "split": split,
        "primary": first.primary if first else "accuracy",
        "n": first.n if first else 0,
        "by": by,
        "seeds": list(seeds),
        "complete": complete,
        "full": _full(full),
        "techniques": [_technique(full, variant) for variant in variants],
        "left_out": [{"name": k, "reason": v} for k, v in (left_out or {}).items()],
    }


def _full(runs: Sequence[Run]) -> dict[str, Any]:
    found = [run.figures for run in runs if run.figures is not None]
    return {
        "quality": _plain(spread([f.quality for f in found])),
        "retained": _plain(spread([f.retained for f in found])),
        "size": _plain(spread([f.size for f in found])),
        "speed_p50": _plain(spread([f.speed for f in found])),
        "file_bytes": _mean([f.file_bytes for f in found]),
        "p50_ms": _mean([f.p50_ms for f in found]),
        "runs": [run.as_dict() for run in runs],
    }


def _technique(full: Sequence[Run], variant: Variant) -> dict[str, Any]:
    pairs = _pairs(full, variant.runs)
    return {
        "name": variant.name,
        "meaning": variant.meaning,
        "off": list(variant.off),
        "with": _mean([a.quality for a, _ in pairs]),
        "without": _mean([b.quality for _, b in pairs]),
        "points": _plain(spread([100.0 * (a.quality - b.quality) for a, b in pairs])),
        "smaller": _plain(geometric([b.file_bytes / a.file_bytes for a, b in pairs])),
        "faster": _plain(geometric([a.speed / b.speed for a, b in pairs])),
        "file_bytes": _mean([b.file_bytes for _, b in pairs]),
        "p50_ms": _mean([b.p50_ms for _, b in pairs]),
        "speed_p50": _mean([b.speed for _, b in pairs]),
        "runs": [run.as_dict() for run in variant.runs],
    }


def _pairs(full: Sequence[Run], without: Sequence[Run]) -> list[tuple[Figures, Figures]]:
    """Figures of the full recipe and of the variant, for the seeds that both have finished."""
    others = {run.seed: run.figures for run in without}
    pairs = [(run.figures, others.get(run.seed)) for run in full]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _plain(found: Spread | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


HEAD = ("switched off", "seeds", "with %", "without %", "worth in points (95 %)", "bytes",
        "smaller by it", "p50 ms", "speed, × teacher", "faster by it")  # fmt: skip


def table_markdown(report: Report) -> str:
    """The headline, the table and what its columns are: for README and for the page."""
    rows = [_full_row(report), *(_row(report, one) for one in report["techniques"])]
    head = [HEAD[0], f"{report['by']}s", *HEAD[2:]]
    rule = ["---", *["---:"] * (len(HEAD) - 1)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *rows])
    return f"{headline(report)}\n\n{table}\n\n{_legend(report)}"


def page_markdown(report: Report) -> str:
    """The content of ``ablation.md``."""
    recipe = report["recipe"] or "params.yaml"
    parts = [f"# What each technique is worth: {recipe}", table_markdown(report)]
    if any(one["points"] for one in report["techniques"]):
        parts.append("![points, bytes and time](ablation.png)")
    if report["techniques"]:
        parts += ["## What was switched off, and how", _meanings(report)]
    if troubles := _troubles(report):
        parts += ["## What did not run through", "\n".join(troubles)]
    return "\n\n".join(parts) + "\n"


def headline(report: Report) -> str:
    """The full recipe over its seeds, in one sentence."""
    full = report["full"]
    if full["retained"] is None:
        return "The full recipe has not finished yet."
    n, by = full["retained"]["n"], report["by"]
    if n == 1:
        return (
            f"Full recipe, one {by}: {100 * full['retained']['mean']:.2f} % of the teacher's "
            f"{report['primary']} retained on {report['split']}, {full['size']['mean']:.1f}× "
            f"smaller, {full['speed_p50']['mean']:.1f}× faster at p50. One {by} has no interval."
        )
    kept, size = _claim(full["retained"], 100, 2, " %"), _claim(full["size"], 1, 1, "×")
    return (
        f"Full recipe, mean of {n} {by}s: {kept} of the teacher's {report['primary']} retained on "
        f"{report['split']}, {size} smaller, {_claim(full['speed_p50'], 1, 1, '×')} faster at p50."
    )


def _claim(found: Mapping[str, Any], scale: float, digits: int, unit: str) -> str:
    mean, sd, low, high = (scale * found[key] for key in ("mean", "sd", "low", "high"))
    return (f"{mean:.{digits}f}{unit} (sd {sd:.{digits}f}, 95 %: {low:.{digits}f} to "
            f"{high:.{digits}f})")  # fmt: skip


def _full_row(report: Report) -> list[str]:
    full = report["full"]
    speed = full["speed_p50"] and full["speed_p50"]["mean"]
    accuracy = full["quality"] and full["quality"]["mean"]
    return ["nothing: the full recipe", _seeds(report, full), number(accuracy, 2, 100), DASH,
            DASH, number(full["file_bytes"], 0), DASH, number(full["p50_ms"], 3),
            number(speed, 1), DASH]  # fmt: skip


def _row(report: Report, one: Mapping[str, Any]) -> list[str]:
    return [
        one["name"],
        _seeds(report, one),
        number(one["with"], 2, 100),
        number(one["without"], 2, 100) if one["points"] else _status(one["runs"]),
        _interval(one["points"], signed=True),
        number(one["file_bytes"], 0),
        _interval(one["smaller"], unit="×"),
        number(one["p50_ms"], 3),
        number(one["speed_p50"], 1),
        _interval(one["faster"], unit="×"),
    ]


def _seeds(report: Report, one: Mapping[str, Any]) -> str:
    """Seeds with figures, and of how many where some are missing."""
    found, asked = sum(run["quality"] is not None for run in one["runs"]), len(report["seeds"])
    return str(found) if found == asked else f"{found} of {asked}"


def _status(runs: Sequence[Mapping[str, Any]]) -> str:
    return str(runs[0]["status"]) if runs else DASH


def _interval(found: Mapping[str, Any] | None, *, signed: bool = False, unit: str = "") -> str:
    """A mean with its interval, where there is one that has a width to show."""
    if found is None:
        return DASH
    form = "+.2f" if signed else ".2f"
    mean = f"{found['mean']:{form}}{unit}"
    if found["low"] is None or f"{found['low']:{form}}" == f"{found['high']:{form}}":
        return mean
    return f"{mean} ({found['low']:{form}} to {found['high']:{form}})"


def _legend(report: Report) -> str:
    by = report["by"]
    interval = (
        f"paired over {by}s; intervals are Student's t"
        if len(report["seeds"]) > 1
        else f"of one {by}: it has no interval, and what {by}s alone change is not known from it"
    )
    if by == "fold":
        interval += "; folds share most of their training texts, so they are on the narrow side"
    lines = [
        f"{report['n']:,} {report['split']} texts, on the served bytes. *Worth* is with minus "
        f"without, {interval}. *Smaller* and *faster by it* are without over with. Speed is a "
        "multiple of the teacher's p50 in the same run; compare that, not p50 between rows.",
    ]
    if not report["complete"]:
        lines.append("**Not complete: runs are missing.**")
    if report["left_out"]:
        names = "; ".join(f"{one['name']} ({one['reason']})" for one in report["left_out"])
        lines.append(f"Left out: {names}.")
    return " ".join(lines)


def _meanings(report: Report) -> str:
    return "\n".join(
        f"- `{one['name']}`: {one['meaning']}. " + " ".join(f"`{text}`" for text in one["off"])
        for one in report["techniques"]
    )


def _troubles(report: Report) -> list[str]:
    """Runs that a limit stopped or refused, or that failed, with what they said."""
    groups = [("the full recipe", report["full"]["runs"])]
    groups += [(f"without `{one['name']}`", one["runs"]) for one in report["techniques"]]
    return [
        f"- {name}, {report['by']} {run['seed']}: {run['status']}: {run['note'] or 'no word'}"
        for name, runs in groups
        for run in runs
        if run["status"] != "passed"
    ]
