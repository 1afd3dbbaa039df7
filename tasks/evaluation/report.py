"""What is said of `reports/summary.json`: `summary.md`, the table at the end of a run, README."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.evaluation import evidence_markdown
from tasks.evaluation.energy import NOT_MEASURED
from tasks.evaluation.latency import LatencyRow, PairedRatio
from tasks.evaluation.statistics import ClassDrops, Interval
from tasks.evaluation.summary import CANDIDATE, beaten_by_linear
from tasks.evaluation.tables import DASH, number, significant, table

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.table import Table

WORST_CLASSES = 5
NOTABLE = 0.005
"""Share of zeros from which on a model was made sparse: training leaves some by chance."""


@dataclass(frozen=True)
class Details:
    """What `summary.md` shows beyond `summary.json`."""

    drop: Interval
    """Of accuracy, in points."""
    flip_rate: float
    detectable_drop: float
    """In points."""
    classes: ClassDrops
    labels: Sequence[str]
    latency: Mapping[str, Mapping[int, LatencyRow]] = field(default_factory=dict)
    """By model and batch size."""
    paired_speed: PairedRatio | None = None
    """Teacher over candidate, text by text."""
    profile: str = ""
    """The hardware profile that the candidate was built for."""
    measured_on: str = ""
    """The profile of the machine at hand."""
    device: str = "cpu"
    """Where the models were trained and measured."""
    sparsity: float = 0.0
    """Share of zeros over the matrices of the candidate's layers."""
    planned_ms: float = 0.0
    """``prune.budget.latency_ms``; 0 asks for nothing."""
    notes: Sequence[str] = ()
    """Further lines, as they are."""


Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def _columns() -> list[Column]:
    """Heads and cells of the table of all rows, on the page and in the terminal."""
    return [
        ("stage", lambda row: str(row["stage"])),
        ("accuracy %", lambda row: number(row["quality"].get("accuracy"), 2, 100)),
        ("macro-F1 %", lambda row: number(row["quality"].get("macro_f1"), 2, 100)),
        ("ECE", lambda row: number(row["quality"].get("ece"), 3)),
        ("bytes", lambda row: number(row["file_bytes"], 0)),
        ("p50 ms", lambda row: significant(_latency(row, "p50"))),
        ("p95 ms", lambda row: significant(_latency(row, "p95"))),
        ("p99 ms", lambda row: significant(_latency(row, "p99"))),
        ("energy mWh/1k", _energy),
    ]


def render_terminal(summary: Mapping[str, Any]) -> Table:
    """The table that a run ends with: a row per model, a dash where nothing was measured."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    verdict = "passed" if summary["gate"]["passed"] else "refused"
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"{summary['n']:,} {summary['split']} texts, gate {verdict}",
        caption=f"{_headline(summary['ratios'])}\nenergy: {', '.join(_methods(summary))}",
        caption_justify="left",
    )
    columns = _columns()
    cells = _rows(summary["stages"], columns)
    for line in cells:
        line[-1] = line[-1].split()[0] if line[-1][0].isdigit() else DASH
    for index, (head, _) in enumerate(columns):
        side: JustifyMethod = "right" if index else "left"
        table.add_column(head.replace(" ", "\n"), justify=side, no_wrap=True)
    for line in cells:
        table.add_row(*line, style="bold" if line[0] == CANDIDATE else None)
    return table


def _methods(summary: Mapping[str, Any]) -> list[str]:
    methods = sorted({row["energy_method"] for row in summary["stages"] if row["energy_method"]})
    return methods or [NOT_MEASURED]


def render_markdown(summary: Mapping[str, Any], details: Details) -> str:
    """The content of `reports/summary.md`."""
    parts = [
        "# What this run made",
        _headline(summary["ratios"]),
        f"Measured on the {summary['split']} split, {summary['n']:,} texts; "
        "latency: batch 1, one thread, text in, label out.",
        table([head for head, _ in _columns()], _rows(summary["stages"], _columns())),
        "![quality against size and speed](pareto.png)",
        "## Footprint",
        _footprint(summary["stages"]),
        "## The gate",
        _gate(summary["gate"]),
        "## Against the teacher",
        _against(details),
        "## Worst classes",
        _classes(details),
        *(["## Batches", _batches(details.latency)] if details.latency else []),
        *evidence_markdown.sections(summary.get("evidence", {})),
        "## What these figures are worth",
        "\n".join(f"- {note}" for note in notes(summary, details)),
    ]
    return "\n\n".join(parts) + "\n"


def result_markdown(summary: Mapping[str, Any]) -> str:
    """The table of all rows and the headline, for README."""
    cells = table([head for head, _ in _columns()], _rows(summary["stages"], _columns()))
    return f"{cells}\n\nThe bundle: {_headline(summary['ratios'])}."


def _headline(ratio: Mapping[str, Any]) -> str:
    interval = ratio["quality_retained_ci95"]
    kept = f"{number(ratio['quality_retained'], 2, 100)} % of the teacher's accuracy"
    if interval:
        kept += f" (95 %: {number(interval[0], 2, 100)} to {number(interval[1], 2, 100)})"
    return (
        f"{kept}, {_times(ratio['size'])} smaller, {_times(ratio['speed_p50'])} faster at p50 "
        f"({_times(ratio['speed_p50_vs_onnx_fp32'])} against the teacher on ONNX Runtime fp32)"
    )


def _footprint(stages: Sequence[Mapping[str, Any]]) -> str:
    columns: list[Column] = [
        ("stage", lambda row: str(row["stage"])),
        ("parameters", lambda row: number(row["parameters"], 0)),
        ("MFLOPs a text", lambda row: number(row["flops"], 2, 1e-6)),
        ("NLL", lambda row: number(row["quality"].get("nll"), 4)),
        ("texts per s", lambda row: number(row["throughput_per_s"], 0)),
        ("cold start ms", lambda row: number(row["cold_start_ms"], 0)),
        ("peak memory MB", lambda row: number(row["peak_memory_bytes"], 0, 1e-6)),
        ("g CO2e per 1k", lambda row: number(row["co2e_g_per_1k"], 5)),
    ]
    return table([head for head, _ in columns], _rows(stages, columns))


def _gate(gate: Mapping[str, Any]) -> str:
    rows = []
    for check in gate["checks"]:
        digits = 0 if check["metric"] == "bytes" else 4
        bound = "≤" if check["kind"] == "max" else "≥"
        limit = f"{bound} {number(check['limit'], digits)}"
        verdict = "yes" if check["passed"] else "**no**"
        rows.append([check["metric"], number(check["value"], digits), limit, verdict])
    word = "The candidate **passed**" if gate["passed"] else "The candidate was **refused**"
    return f"{word}. Drops are in points of 100 against the teacher.\n\n" + table(
        ["check", "found", "limit", "passed"], rows
    )


def _against(details: Details) -> str:
    drop = details.drop
    lines = [
        f"Accuracy drop: {drop.point:.2f} points (95 % paired bootstrap: "
        f"{drop.low:.2f} to {drop.high:.2f}).",
        f"Flips: {number(details.flip_rate, 2, 100)} % of the texts get another label than "
        "from the teacher.",
        f"The smallest drop that this split shows with a power of 80 %: "
        f"{number(details.detectable_drop, 2)} points.",
    ]
    if details.paired_speed:
        ratio = details.paired_speed
        lines.append(
            f"Speed text by text, teacher over candidate: {ratio.median:.1f}× "
            f"(quartiles {ratio.q1:.1f} to {ratio.q3:.1f})."
        )
    return "\n".join(f"- {line}" for line in lines)


def _classes(details: Details) -> str:
    judged = details.classes.classes
    if not judged:
        return "No class has rows enough to be judged; the gate took the overall drop instead."
    worst = sorted(judged, key=lambda drop: (-drop.point, -drop.lower))[:WORST_CLASSES]
    rows = [
        [
            details.labels[drop.label],
            str(drop.n),
            f"{drop.point:.1f}",
            f"{drop.shrunken:.1f}",
            f"{drop.lower:.1f}",
        ]
        for drop in worst
    ]
    head = ["class", "rows", "recall lost, points", "shrunken", "lower bound"]
    return (
        table(head, rows)
        + f"\n\nShrunken towards the overall drop of {details.classes.overall:.2f} points; the "
        f"bound is corrected for the {len(judged)} judged. The gate judges the largest bound."
    )


def _batches(latency: Mapping[str, Mapping[int, LatencyRow]]) -> str:
    rows = []
    for name, by_batch in latency.items():
        for batch, row in by_batch.items():
            times = [f"{ms:.3f}" for ms in (row.p50, row.p95, row.p99)]
            rows.append([name, str(batch), *times, f"{row.throughput_per_s:,.0f}"])
    return table(["model", "batch", "p50 ms", "p95 ms", "p99 ms", "texts per s"], rows)


def notes(summary: Mapping[str, Any], details: Details) -> list[str]:
    """What the figures are worth, a sentence each, for `summary.md` and the page."""
    methods = _methods(summary)
    lines = [
        "Size is all files that answering needs, tokenizer included. Quality, size and speed of "
        "the candidate are those of the served bytes, through the serving loader.",
        "Models were timed interleaved, on the same texts, with one thread each; p50 speed is "
        "the quotient of the p50 columns.",
        "One seed: a claim narrower than the spread of seeds needs the mean of three or more.",
    ]
    if beaten_by_linear(summary):
        lines.insert(
            0,
            "**The linear model beats the candidate on all axes (quality, bytes, latency): "
            "this student is not worth shipping.**",
        )
    if methods == [NOT_MEASURED]:
        lines.append("Energy was not measured: that takes loops of at least 30 s a model.")
    else:
        lines.append(f"Energy method: {', '.join(methods)}.")
    if "estimated" in methods:
        lines.append(
            "Estimated energy is watts assumed times seconds: its ratio repeats the speed ratio "
            "and says nothing more. It decides nothing in the gate."
        )
    if details.device == "cpu":
        lines.append("Nothing in this run ran on a GPU.")
    built = (summary.get("evidence") or {}).get("quantisation") or {}
    for row in built.get("runtimes", ()):
        if row["runtime"] == built["runtime"] and row["absent"]:
            gpu = "; *unverified on a GPU*" if row["runtime"] == "tensorrt" else ""
            lines.append(
                f"Built for {row['runtime']}, which did not run here ({row['absent']}): answers, "
                f"latency and energy are {row['answered_by']}'s on the same file{gpu}."
            )
    if details.sparsity >= NOTABLE:
        lines.append(
            f"{details.sparsity:.0%} of the weights in the layers' matrices are zero: size and "
            "latency above are what that has brought on this engine."
        )
    if details.planned_ms:
        p50 = _latency(summary["stages"][-1], "p50")
        found = "not measured" if p50 is None else f"{significant(p50)} ms as served"
        missed = p50 is not None and p50 > details.planned_ms
        lines.append(
            f"Planned for a p50 of at most {details.planned_ms:g} ms (`prune.budget.latency_ms`): "
            f"{found}{', **above it**' if missed else ''}."
        )
    if details.profile:
        measured = f", measured on `{details.measured_on}`" if details.measured_on else ""
        lines.append(f"Built for the hardware profile `{details.profile}`{measured}.")
    return [*lines, *details.notes]


def _energy(row: Mapping[str, Any]) -> str:
    if row["energy_kwh_per_1k"] is None:
        return row["energy_method"] or DASH
    return f"{significant(1e6 * row['energy_kwh_per_1k'])} {row['energy_method']}"


def _latency(row: Mapping[str, Any], name: str) -> float | None:
    return row["latency_ms"][name] if row["latency_ms"] else None


def _rows(stages: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[list[str]]:
    return [[cell(row) for _, cell in columns] for row in stages]


def _times(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}×"
