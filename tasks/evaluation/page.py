"""The report page: `reports/index.html`, one file that needs no other and no network.

What `reports/summary.json` holds, drawn and laid out for people who would rather look than
read. A section whose figures were not measured is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from tasks.evaluation.charts import Point, scatter
from tasks.evaluation.figures import (
    DASH,
    count,
    energy,
    fixed,
    known,
    milliseconds,
    percent,
    significant,
    size,
    times,
)
from tasks.evaluation.page_evidence import evidence_sections
from tasks.evaluation.page_parts import (
    Column,
    Record,
    Section,
    charts,
    facts,
    figure,
    paragraph,
    table,
)
from tasks.evaluation.page_style import STYLE
from tasks.evaluation.pareto import WINDOW, merged, pareto_front
from tasks.evaluation.summary import CANDIDATE, LINEAR, TEACHER, beaten_by_linear

KINDS = {TEACHER: "teacher", LINEAR: "linear", CANDIDATE: "candidate"}
CHECKS = {
    "drop": "accuracy lost, points",
    "drop_upper95": "accuracy lost, upper 95 % bound, points",
    "macro_f1_drop": "macro-F1 lost, points",
    "class_drop": "recall surely lost by the worst class (shrunken, lower bound), points",
    "ece": "expected calibration error",
    "bytes": "bytes of all servable files",
    "parity": "same answer as before quantisation, share",
}


def render_page(summary: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The content of `reports/index.html`.

    Args:
        summary: as `reports/summary.json`, with or without ``evidence``.
        notes: what the figures are worth, a sentence each.
    """
    sections = [
        _pareto(summary),
        _stages(summary["stages"]),
        _gate(summary["gate"]),
        *evidence_sections(summary.get("evidence") or {}),
        _notes(notes),
    ]
    shown = [section for section in sections if section is not None]
    links = "".join(f'<li><a href="#{s.id}">{escape(s.title)}</a></li>' for s in shown)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>Stillroom: {_verdict(summary['gate'])}</title><style>{STYLE}</style></head>"
        f"<body><main>{_head(summary)}"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
        f"{''.join(section.html() for section in shown)}</main></body></html>\n"
    )


def _verdict(gate: Record) -> str:
    return "the candidate passed the gate" if gate["passed"] else "the candidate was refused"


def _head(summary: Mapping[str, Any]) -> str:
    gate, ratio, primary = summary["gate"], summary["ratios"], summary["primary"]
    rows = {row["stage"]: row for row in summary["stages"]}
    teacher, own = rows[TEACHER], rows[CANDIDATE]
    word = "passed" if gate["passed"] else "refused"
    failing = [CHECKS.get(c["metric"], c["metric"]) for c in gate["checks"] if not c["passed"]]
    because = f" Over the limit: {'; '.join(failing)}." if failing else ""
    lead = (
        f"{percent(own['quality'].get(primary))} {primary.replace('_', ' ')} where the teacher has "
        f"{percent(teacher['quality'].get(primary))}, {size(own['file_bytes'])} where it has "
        f"{size(teacher['file_bytes'])}. Measured on {summary['n']:,} texts of the "
        f"{summary['split']} split, on the bytes that are served.{because}"
    )
    warning = (
        "**The linear model equals or beats the candidate in quality, bytes and latency:** this "
        "student is not worth shipping."
    )
    return (
        f'<header><span class="badge {word}">gate {word}</span>'
        f"<h1>{_verdict(gate).capitalize()}</h1>{paragraph(lead)}"
        f"{paragraph(warning, 'warning') if beaten_by_linear(summary) else ''}"
        f"{_tiles(ratio, primary, own)}"
        f'<p class="soft">Artifact <code>{escape(str(gate["artifact_sha256"]))}</code></p></header>'
    )


def _tiles(ratio: Record, primary: str, own: Record) -> str:
    interval = ratio["quality_retained_ci95"]
    span = f"95 %: {percent(interval[0])} to {percent(interval[1])}" if interval else ""
    p50 = milliseconds(own["latency_ms"] and own["latency_ms"]["p50"])
    method = own["energy_method"] or "not measured"
    tiles = [
        (f"{primary.replace('_', ' ')} kept", percent(ratio["quality_retained"]), span),
        ("smaller", times(ratio["size"]), f"{size(own['file_bytes'])}, tokenizer included"),
        ("faster at p50", times(ratio["speed_p50"]), f"{p50}, batch 1, one thread"),
        ("faster than ONNX fp32", times(ratio["speed_p50_vs_onnx_fp32"]),
         "the teacher on ONNX Runtime"),
    ]  # fmt: skip
    if known(ratio["energy"]):
        used = energy(own["energy_kwh_per_1k"])
        tiles.append(("less energy", times(ratio["energy"]), f"{used} per 1,000, {method}"))
    cells = "".join(
        f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd class="small">{escape(note)}</dd>'
        "</div>"
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _pareto(summary: Mapping[str, Any]) -> Section | None:
    primary = summary["primary"]
    axes: list[tuple[str, str, str, Callable[[Record], float | None]]] = [
        ("bytes", "Against size", "all servable files, MB, log scale", _megabytes),
        ("latency", "Against latency", "text to label, p50 in ms, log scale", _p50),
        ("energy", "Against energy", "mWh per 1,000 texts, log scale", _milliwatthours),
    ]
    drawn = [_front(summary, *axis) for axis in axes]
    if not any(drawn):
        return None
    lead = (
        f"Better is up and to the left. The line is the front: the best {primary.replace('_', ' ')}"
        " for at most so much cost. What is far below the rest stands at the foot as an arrow, "
        "with its figure."
    )
    return Section("fronts", "Quality against cost", paragraph(lead, "soft") + charts(*drawn))


def _front(
    summary: Mapping[str, Any],
    axis: str,
    heading: str,
    x_label: str,
    cost: Callable[[Record], float | None],
) -> str:
    """A scatter of the primary metric over one cost; nothing where fewer than two have one."""
    primary = summary["primary"]
    found = [(row["stage"], row["quality"].get(primary), cost(row)) for row in summary["stages"]]
    points = [{"stage": s, "quality": 100 * q, axis: c} for s, q, c in found
              if known(q) and known(c) and c is not None and c > 0]  # fmt: skip
    if len(points) < 2:
        return ""
    shown = merged(points, axis)
    front = set(pareto_front(shown, ["quality"], [axis]))
    best = max(p["quality"] for p in shown)
    worst = min(p["quality"] for p in shown if p["quality"] >= best - WINDOW)
    foot = worst - 0.25 * max(best - worst, 0.5)
    marks = [
        Point(tuple(p["names"]), p[axis], p["quality"], _kind(p["names"]),
              below=p["quality"] < foot, front=index in front)
        for index, p in enumerate(shown)
    ]  # fmt: skip
    quality = primary.replace("_", " ")
    said = "; ".join(f"{', '.join(p.names)} {p.y:.2f} % at {p.x:.4g}" for p in marks)
    drawing = scatter(
        marks, title=f"{quality} in % over {x_label}: {said}", x_label=x_label,
        y_label=f"{quality}, %", x_text=lambda value: f"{value:,g}" if value in _round(value)
        else significant(value), foot=foot,
    )  # fmt: skip
    return figure(heading, drawing)


def _round(value: float) -> tuple[float, ...]:
    """The value itself where it has at most two digits, as ticks have."""
    return (value,) if float(f"{value:.2g}") == value else ()


def _kind(names: Sequence[str]) -> str:
    return next((KINDS[name] for name in KINDS if name in names), "stage")


def _megabytes(row: Record) -> float | None:
    return row["file_bytes"] / 1e6 if row["file_bytes"] else None


def _p50(row: Record) -> float | None:
    return row["latency_ms"]["p50"] if row["latency_ms"] else None


def _milliwatthours(row: Record) -> float | None:
    return 1e6 * row["energy_kwh_per_1k"] if row["energy_kwh_per_1k"] else None


def _stages(stages: Sequence[Record]) -> Section:
    def latency(name: str) -> Callable[[Record], str]:
        return lambda row: significant(row["latency_ms"] and row["latency_ms"][name])

    name: Column = ("stage", lambda row: str(row["stage"]))
    quality: list[Column] = [
        ("accuracy %", lambda row: fixed(_times(row["quality"].get("accuracy"), 100), 2)),
        ("macro-F1 %", lambda row: fixed(_times(row["quality"].get("macro_f1"), 100), 2)),
        ("perplexity", lambda row: significant(row["quality"].get("perplexity"))),
        ("NLL", lambda row: fixed(row["quality"].get("nll"), 3)),
        ("ECE", lambda row: fixed(row["quality"].get("ece"), 3)),
        ("size", lambda row: size(row["file_bytes"])),
        ("p50 ms", latency("p50")),
        ("p95 ms", latency("p95")),
        ("p99 ms", latency("p99")),
        ("texts per s", lambda row: count(row["throughput_per_s"])),
    ]
    footprint: list[Column] = [
        ("parameters", lambda row: count(row["parameters"])),
        ("MFLOPs a text", lambda row: significant(_times(row["flops"], 1e-6))),
        ("cold start", lambda row: milliseconds(row["cold_start_ms"])),
        ("peak memory", lambda row: size(row["peak_memory_bytes"])),
        ("energy per 1,000", lambda row: energy(row["energy_kwh_per_1k"])),
        ("energy method", lambda row: str(row["energy_method"] or DASH)),
    ]
    caption = "Latency: batch 1, one thread, text in, label out; – where nothing was measured."
    body = "".join(
        table(said, [name, *columns], stages, bold=CANDIDATE)
        for said, columns in ((caption, quality), ("Footprint of each model", footprint))
    )
    return Section("stages", "Every model of the chain", body)


def _gate(gate: Record) -> Section:
    def figure_of(check: Record, name: str) -> str:
        return size(check[name]) if check["metric"] == "bytes" else significant(check[name])

    columns: list[Column] = [
        ("check", lambda c: CHECKS.get(c["metric"], str(c["metric"]))),
        ("found", lambda c: figure_of(c, "value")),
        ("limit", lambda c: f"{'≤' if c['kind'] == 'max' else '≥'} {figure_of(c, 'limit')}"),
        ("passed", lambda c: "yes" if c["passed"] else "no"),
    ]
    lines = []
    if known(gate.get("detectable_drop")):
        lines.append("The smallest drop that this split shows with a power of 80 %: "
                     f"{fixed(gate['detectable_drop'], 2)} points.")  # fmt: skip
    body = table("Losses are against the teacher.", columns, gate["checks"]) + facts(lines)
    return Section("gate", "The gate's checks", body)


def _notes(notes: Sequence[str]) -> Section | None:
    if not notes:
        return None
    return Section("worth", "What these figures are worth", facts(notes))


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value
