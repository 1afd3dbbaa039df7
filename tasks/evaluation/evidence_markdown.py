"""``evidence`` of the report as sections of ``summary.md``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.evaluation.tables import DASH, number, table

Evidence = Mapping[str, Any]
WORST = 10


def sections(evidence: Evidence) -> list[str]:
    """Headings and texts, in order; what was not measured has none."""
    parts: list[str] = []
    for title, key, write in SECTIONS:
        if evidence.get(key):
            parts += [f"## {title}", write(evidence[key])]
    return parts


def _percent(value: float | None) -> str:
    return number(value, 2, 100)


def _points(value: float | None) -> str:
    return DASH if value is None else f"{value:+.2f}"


def _mcnemar(found: Evidence) -> str:
    return (
        f"{found['teacher_only']} texts only the teacher has right, {found['candidate_only']} only "
        f"the candidate; if both erred alike, a difference of this size or more would come with "
        f"p = {found['p_value']:.3g} (exact McNemar)."
    )


def _flips(found: Evidence) -> str:
    return (
        f"{_percent(found['rate'])} % of the answers differ from the teacher's: "
        f"{_percent(found['helped'])} % are right now, {_percent(found['hurt'])} % are wrong now, "
        f"{_percent(found['both_wrong'])} % are wrong in another way."
    )


def _calibration(found: Evidence) -> str:
    bins = {name: {row["low"]: row for row in rows} for name, rows in found["bins"].items()}
    lows = sorted({low for rows in bins.values() for low in rows})
    cells = [
        [f"{low:.1f}", *(_bin(rows.get(low)) for rows in (bins["teacher"], bins["deploy"]))]
        for low in lows
    ]
    after = number(found["ece_after"], 3)
    said = (
        f"No temperature was folded into the logits. On test the calibration error is {after}."
        if found["temperature"] == 1
        else f"One temperature, {found['temperature']:.3f}, was fitted on validation and folded "
        "into the logits. On test the calibration error is "
        f"{number(found['ece_before'], 3)} without it and {after} with it."
    )
    return f"{said}\n\n" + table(
        ["confidence from", "teacher: right % (texts)", "candidate: right % (texts)"], cells
    )


def _bin(row: Evidence | None) -> str:
    return DASH if row is None else f"{_percent(row['accuracy'])} ({row['n']})"


def _robustness(rows: Sequence[Evidence]) -> str:
    head = ["altered", "texts", "teacher %", "candidate %", "teacher's drop", "candidate's drop",
            "candidate's flips %"]  # fmt: skip
    cells = [[r["name"], str(r["n"]), _percent(r["teacher"]), _percent(r["candidate"]),
              _points(r["teacher_drop"]), _points(r["candidate_drop"]), _percent(r["flip_rate"])]
             for r in rows]  # fmt: skip
    return table(head, cells) + "\n\nDrops in points against the same texts as they were."


def _ood(found: Evidence) -> str:
    areas = found["auroc"]
    return (
        f"{found['n']} texts of `{found['source']}` against test, told apart by {found['score']}: "
        f"AUROC {areas['teacher']:.3f} for the teacher, {areas['candidate']:.3f} for the candidate "
        "(0.5 is chance). Where the other set has texts of the same kind, 1 is out of reach."
    )


def _slices(rows: Sequence[Evidence]) -> str:
    head = ["slice", "value", "texts", "teacher %", "candidate %", "gap", "teacher's gap",
            "drop, 95 %"]  # fmt: skip
    cells = [[r["slice"], r["value"], str(r["n"]), _percent(r["teacher"]), _percent(r["candidate"]),
              _points(r["gap"]), _points(r["teacher_gap"]), f"{r['low']:.2f} to {r['high']:.2f}"]
             for r in rows]  # fmt: skip
    return table(head, cells) + "\n\nA gap is accuracy there minus accuracy over all, in points."


def _small_slices(rows: Sequence[Evidence]) -> str:
    named = ", ".join(f"{r['slice']}: {r['value']} ({r['n']})" for r in rows)
    return f"Nothing can be said of these, so nothing is: {named}."


def _counterfactual(rows: Sequence[Evidence]) -> str:
    cells = [[r["name"], str(r["n"]), _percent(r["teacher_flip_rate"]),
              _percent(r["candidate_flip_rate"])] for r in rows]  # fmt: skip
    return table(["swapped", "pairs", "teacher flips %", "candidate flips %"], cells)


def _memorisation(found: Evidence) -> str:
    return (
        f"{found['pairs']} test texts nearly stand in train. The candidate's confidence is "
        f"{found['confidence_near']:.3f} on them and {found['confidence_far']:.3f} on their "
        f"neighbours, the test texts most like each: {found['gap']:+.3f} (95 %: "
        f"{found['low']:+.3f} to {found['high']:+.3f})."
    )


def _long(found: Evidence) -> str:
    cells = [[r["name"], _percent(r["teacher"]), _percent(r["candidate"]),
              _percent(r["agreement"]), number(r["teacher_confidence"], 3),
              number(r["candidate_confidence"], 3)] for r in found["rows"]]  # fmt: skip
    return (
        f"{found['n']} long texts ({found['source']}); {_percent(found['truncated_share'])} % are "
        "cut off. What stands after the cut is not read, and nobody should be sure of it.\n\n"
    ) + table(["a test text is", "teacher %", "candidate %", "same answer %",
               "teacher's confidence", "candidate's"], cells)  # fmt: skip


def _scripts(rows: Sequence[Evidence]) -> str:
    cells = [[r["script"], str(r["n"]), _percent(r["unknown_share"]),
              number(r["mean_confidence"], 3)] for r in rows]  # fmt: skip
    return table(["script", "sentences", "unknown pieces %", "mean confidence"], cells)


def _vocabulary(found: Evidence) -> str:
    cells = [[f"`{r['texts']}`", _share(r["source"]), _share(r["student"])]
             for r in found["unknown"]]  # fmt: skip
    return (f"The student's tokenizer has {found['pieces']:,} pieces.\n\n"
            + table(["texts", "unknown pieces % before trimming", "after"], cells))  # fmt: skip


def _share(value: float) -> str:
    return number(value, 4, 100)


def _latency(rows: Sequence[Evidence]) -> str:
    cells = [[r["model"], str(r["pieces"]), str(r["batch"]), str(r["threads"]), f"{r['p50']:.3f}",
              f"{r['p95']:.3f}", f"{r['p99']:.3f}", f"{r['texts_per_s']:,.0f}"]
             for r in rows]  # fmt: skip
    return table(["model", "pieces", "batch", "threads", "p50 ms", "p95 ms", "p99 ms",
                  "texts per s"], cells)  # fmt: skip


def _adaptive(rows: Sequence[Evidence]) -> str:
    exits = len(rows[0]["share"])
    head = ["stops at", "right %", *(f"exit {n} %" for n in range(1, exits)), "to the end %",
            "mean ms"]  # fmt: skip
    cells = [[f"{r['confidence']:g}{', served' if r['served'] else ''}", _percent(r["accuracy"]),
              *(_percent(share) for share in r["share"]), f"{r['latency_ms']:.3f}"]
             for r in rows]  # fmt: skip
    return table(head, cells) + (
        "\n\nA text leaves at the first exit whose softmax is as sure as that. Of the served "
        "files, on test; the one that is served was chosen on validation. Latency: batch 1, one "
        "thread, text to logits up to each exit, timed on their own (the mean over texts of the "
        "median over rounds), then averaged by the shares that stop there."
    )


def _engine(found: Evidence) -> str:
    return (
        f"From text to label {found['text_to_label_p50']:.3f} ms at p50, the bare engine on ready "
        f"ids {found['engine_p50']:.3f} ms: {found['ratio']:.2f}×."
    )


def _energy(found: Evidence) -> str:
    cells = [[r["stage"], number(r["kwh"], 3, 1000), number(r["seconds"], 0), r["method"]]
             for r in found["stages"]]  # fmt: skip
    after = found["pays_back_after_predictions"]
    earned = "" if after is None else f" It is earned back after {after:,.0f} answers."
    total = number(found["pipeline_kwh"], 3, 1000)
    return (table(["stage", "Wh", "seconds", "method"], cells)
            + f"\n\nFrom fetch to quantize, the pipeline took {total} Wh; what validate takes to "
            f"measure is not in it.{earned} Method: {found['method']}.")  # fmt: skip


def _quantisation(found: Evidence) -> str:
    lines = [
        f"`{found['precision']}` against its own fp32 form on validation: KL "
        f"{number(found['kl'], 5)} nats, {_percent(found['flip_rate'])} % of the answers flipped, "
        f"{found['drop']:.2f} points lost (budget {found['loss_budget']:g}). Done about it: "
        f"{found['action']}."
    ]
    if len(found.get("runtimes", [])) > 1:
        cells = [[r["runtime"], r["scheme"], _percent(r["accuracy"]), f"{r['drop']:.2f}",
                  _percent(r["flip_rate"]), f"{r['bytes']:,}",
                  "–" if r["p50_ms"] is None else f"{r['p50_ms']:.3f}", _standing(r, found)]
                 for r in found["runtimes"]]  # fmt: skip
        lines.append(table(["runtime", "form", "accuracy %", "points lost", "flips %", "bytes",
                            "p50 ms, validation", ""], cells))  # fmt: skip
    if first := found["first_divergence"]:
        lines.append(f"The first layer that is off by over a tenth is `{first['layer']}` "
                     f"({first['error']:.2f}, with what it was handed).")  # fmt: skip
    else:
        lines.append("No layer's output is off by over a tenth.")
    if found["sensitivity"]:
        rows = found["sensitivity"][:WORST]
        cells = [[r["layer"], number(r["kl"], 5), f"{r['bytes']:,}"] for r in rows]
        lines.append(table(["layer, alone in that form", "KL", "bytes more in fp32"], cells))
    return "\n\n".join(lines)


def _standing(row: Evidence, found: Evidence) -> str:
    """What came of one engine."""
    if row["absent"]:
        return f"not run here ({row['absent']}); answers are ONNX Runtime's on the same file"
    if row["runtime"] == found["runtime"]:
        return "serves"
    return "not the fastest" if row["within"] else "beyond the budget"


SECTIONS: list[tuple[str, str, Callable[[Any], str]]] = [
    ("Who is right where", "mcnemar", _mcnemar),
    ("Flips", "flips", _flips),
    ("Confidence", "calibration", _calibration),
    ("What quantisation cost", "quantisation", _quantisation),
    ("Robustness", "robustness", _robustness),
    ("Slices", "slices", _slices),
    ("Slices of too few texts", "small_slices", _small_slices),
    ("Words that ought not to matter", "counterfactual", _counterfactual),
    ("Texts from elsewhere", "ood", _ood),
    ("Near-duplicates of training texts", "memorisation", _memorisation),
    ("Long texts", "long_texts", _long),
    ("Other scripts", "scripts", _scripts),
    ("Unknown pieces", "vocabulary", _vocabulary),
    ("Latency by length", "latency", _latency),
    ("Adaptive depth", "adaptive_depth", _adaptive),
    ("What is not the engine", "engine", _engine),
    ("Energy to solution", "energy", _energy),
]
