"""The sections of the report page that show ``evidence``: each, or none where it is absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.evaluation.charts import Bar, Point, bars, reliability, scatter
from tasks.evaluation.figures import (
    DASH,
    count,
    energy,
    fixed,
    known,
    milliseconds,
    percent,
    signed,
    significant,
    size,
)
from tasks.evaluation.page_parts import (
    Column,
    Record,
    Section,
    charts,
    facts,
    figure,
    key,
    more,
    pair,
    paragraph,
    table,
)

SHOWN = 12
"""Bars of a chart; the table beneath has all."""
BOTH = ("teacher", "candidate")


def evidence_sections(evidence: Mapping[str, Any]) -> list[Section]:
    """All sections that there is something for, in the order of the page."""
    sections = [
        against_teacher(evidence),
        calibration(evidence.get("calibration")),
        classes(evidence.get("per_class"), evidence.get("confusions")),
        quantisation(evidence.get("quantisation")),
        robustness(evidence.get("robustness"), evidence.get("counterfactual")),
        slices(evidence.get("slices"), evidence.get("small_slices") or ()),
        elsewhere(evidence),
        depth(evidence.get("adaptive_depth")),
        speed(evidence.get("latency"), evidence.get("engine")),
        energy_section(evidence.get("energy")),
    ]
    return [section for section in sections if section is not None]


def against_teacher(evidence: Mapping[str, Any]) -> Section | None:
    """Which answers changed, and whether that is more than chance."""
    flips, mcnemar = evidence.get("flips"), evidence.get("mcnemar")
    body = ""
    if flips:
        parts = [(flips.get(name) or 0.0, kind, said) for name, kind, said in (
            ("helped", "good", "wrong before, right now"),
            ("hurt", "bad", "right before, wrong now"),
            ("both_wrong", "linear", "wrong before and now"))]  # fmt: skip
        body += paragraph(f"{percent(flips['rate'])} of the texts get another label than from "
                          "the teacher.")  # fmt: skip
        strip = "".join(f'<span class="fill-{kind}" style="flex-grow:{1000 * share:.3f}"></span>'
                        for share, kind, _ in parts)  # fmt: skip
        body += f'<div class="flow" aria-hidden="true">{strip}</div>'
        body += key([(kind, f"{said}: {percent(share)}") for share, kind, said in parts])
    if mcnemar:
        p = mcnemar.get("p_value")
        chance = "" if not known(p) else f" (McNemar, p {_p_value(p)})"
        body += facts([
            f"Right by the teacher alone: {count(mcnemar['teacher_only'])} texts; by the candidate "
            f"alone: {count(mcnemar['candidate_only'])}{chance}."])  # fmt: skip
    return Section("flips", "Answers that changed", body) if body else None


def calibration(found: Record | None) -> Section | None:
    """Reliability diagrams: is a score how often it is right?"""
    bins = (found or {}).get("bins") or {}
    drawn = []
    for name, kind in (("teacher", "teacher"), ("deploy", "candidate")):
        filled = [b for b in bins.get(name) or [] if b["n"]]
        if filled:
            said = "; ".join(f"confidence {b['confidence']:.2f}: right {b['accuracy']:.2f}"
                             for b in filled)  # fmt: skip
            drawing = reliability(filled, kind=kind, title=f"Reliability of the {kind}: {said}")
            drawn.append(figure(f"The {kind}", drawing))
    if not found or not drawn:
        return None
    lines = []
    if known(found.get("ece_before")) and known(found.get("ece_after")):
        lines.append(f"Expected calibration error on test: {fixed(found['ece_before'], 3)} without "
                     f"and {fixed(found['ece_after'], 3)} with a temperature of "
                     f"{significant(found.get('temperature'))}, fitted on validation.")  # fmt: skip
    lead = (
        "On the dashed line a score is how often the answer is right; beneath it the model is "
        "too sure. The blocks at the foot show how many answers have that confidence."
    )
    return Section("calibration", "Can its scores be believed?",
                   paragraph(lead, "soft") + charts(*drawn) + facts(lines))  # fmt: skip


def classes(per_class: Sequence[Record] | None, confusions: Sequence[Record] | None
            ) -> Section | None:  # fmt: skip
    """Which labels lost most, and what is now answered in their place."""
    body, drawing, told, changes = "", "", "", ""
    if per_class:
        ranked = sorted(per_class, key=lambda c: -(c["drop"] or 0))
        worst = [Bar(f"{c['label']} ({c['n']:,})", (c["drop"],)) for c in ranked[:SHOWN]]
        drawing = figure(
            "Recall lost, points: the worst (texts in brackets)",
            bars(worst, title="Recall lost by class, points: " + _said(worst),
                 kinds=["candidate"], text=lambda v: signed(v, 1)))  # fmt: skip
        columns: list[Column] = [
            ("class", lambda c: str(c["label"])), ("texts", lambda c: count(c["n"])),
            ("teacher's recall", lambda c: percent(c["teacher_recall"], 1)),
            ("candidate's recall", lambda c: percent(c["candidate_recall"], 1)),
            ("lost, points", lambda c: signed(c["drop"], 1)),
            ("shrunken to the overall", lambda c: signed(c.get("shrunken"), 1)),
            ("lower bound", lambda c: signed(c.get("lower"), 1)),
        ]  # fmt: skip
        body += more(f"All {len(ranked)} classes", table(
            "Recall by class, what lost most first", columns, ranked))  # fmt: skip
    if confusions:
        columns = [
            ("label", lambda c: str(c["label"])), ("answered", lambda c: str(c["answered"])),
            ("teacher", lambda c: count(c["teacher"])),
            ("candidate", lambda c: count(c["candidate"])),
            ("change", lambda c: signed(c["candidate"] - c["teacher"], 0)),
        ]  # fmt: skip
        changed = [Bar(f"{c['label']} → {c['answered']}", (c["teacher"], c["candidate"]))
                   for c in confusions[:SHOWN]]  # fmt: skip
        told = figure("Confusions that changed most, texts (label → answer)", key() + bars(
            changed, title="Confusions, texts, teacher and candidate: " + _said(changed),
            kinds=BOTH, text=count))  # fmt: skip
        changes = more(f"All {len(confusions)} confusions", table(
            "Confusions that changed most, texts", columns, confusions,
            words=["answered"]))  # fmt: skip
    body = pair(drawing, told) + body + changes
    return Section("classes", "Class by class", body) if body else None


def quantisation(found: Record | None) -> Section | None:
    """What fewer bits cost, layer by layer, and what was done about it."""
    if not found:
        return None
    lines = []
    if found.get("precision"):
        runtime = f", served by {found['runtime']}" if found.get("runtime") else ""
        lines.append(f"Precision: {found['precision']}{runtime}.")
    if known(found.get("kl")) or known(found.get("flip_rate")):
        lines.append(f"Against its own float form, on validation: KL {_two_digits(found.get('kl'))}"
                     f" nats, {percent(found.get('flip_rate'))} of the answers flipped, accuracy "
                     f"lost {signed(found.get('drop'))} points of a budget of "
                     f"{fixed(found.get('loss_budget'), 2)}.")  # fmt: skip
    built = found.get("runtimes", [])
    if len(built) > 1:
        lines.append("Built for: " + "; ".join(
            f"{row['runtime']} ({row['scheme']}), accuracy lost {signed(row['drop'])}"
            + (f", {milliseconds(row['p50_ms'])} at p50" if known(row.get("p50_ms")) else "")
            + (f", not run here: {row['absent']}" if row["absent"] else "") for row in built)
            + ".")  # fmt: skip
    if first := found.get("first_divergence"):
        lines.append(f"Outputs diverge first at `{first['layer']}` (relative error "
                     f"{significant(first['error'])}).")  # fmt: skip
    if found.get("kept_float"):
        lines.append("Kept in float: " + ", ".join(f"`{n}`" for n in found["kept_float"]) + ".")
    if found.get("action"):
        lines.append(f"Action: {found['action']}")
    body = facts(lines) + pair(_sensitivity(found), _tried(found))
    return Section("quantisation", "What quantisation cost", body) if body else None


def _sensitivity(found: Record) -> str:
    ranked = [s for s in found.get("sensitivity") or [] if known(s["kl"])]  # the dearest first
    rows = [Bar(f"{s['layer']} ({size(s.get('bytes'))})", (s["kl"],)) for s in ranked[:SHOWN]]
    if not rows:
        return ""
    drawing = bars(rows, title="KL of quantising one layer alone, nats: " + _said(rows),
                   kinds=["stage"], text=_two_digits)  # fmt: skip
    return figure("KL of quantising this layer alone, nats", drawing)


def _tried(found: Record) -> str:
    columns: list[Column] = [
        ("form", lambda t: str(t["what"])),
        ("accuracy", lambda t: percent(t.get("accuracy"))),
        ("KL, nats", lambda t: _two_digits(t.get("kl"))),
        ("flipped", lambda t: percent(t.get("flip_rate"))),
        ("size", lambda t: size(t.get("bytes"))),
        ("p50 ms", lambda t: significant(t.get("p50_ms"))),
    ]
    tried = found.get("tried") or []
    return table("What was tried, on validation", columns, tried) if tried else ""


def robustness(found: Sequence[Record] | None, swapped: Sequence[Record] | None
               ) -> Section | None:  # fmt: skip
    """What altered texts do to teacher and candidate."""
    body = ""
    if found:
        rows = [Bar(r["name"], (r["teacher_drop"], r["candidate_drop"])) for r in found]
        drawing = bars(rows, title="Accuracy lost by altered texts, points, teacher and "
                       "candidate: " + _said(rows), kinds=BOTH,
                       text=lambda v: signed(v, 1))  # fmt: skip
        columns: list[Column] = [
            ("alteration", lambda r: str(r["name"])), ("texts", lambda r: count(r["n"])),
            ("teacher", lambda r: percent(r["teacher"])),
            ("candidate", lambda r: percent(r["candidate"])),
            ("teacher lost", lambda r: signed(r["teacher_drop"])),
            ("candidate lost", lambda r: signed(r["candidate_drop"])),
            ("candidate flipped", lambda r: percent(r["flip_rate"])),
        ]  # fmt: skip
        told = table("Accuracy on altered texts; losses in points", columns, found)
        body += key() + pair(figure("Accuracy lost against clean texts, points", drawing), told)
    if swapped:
        columns = [
            ("swapped", lambda r: str(r["name"])), ("texts", lambda r: count(r["n"])),
            ("teacher flipped", lambda r: percent(r["teacher_flip_rate"])),
            ("candidate flipped", lambda r: percent(r["candidate_flip_rate"])),
        ]  # fmt: skip
        body += table("Counterfactuals: answers that change with words that should not matter",
                      columns, swapped)  # fmt: skip
    return Section("robustness", "Altered texts", body) if body else None


def slices(found: Sequence[Record] | None, small: Sequence[Record]) -> Section | None:
    """Groups of texts, the gap of each beside the teacher's own."""
    if not found:
        return None
    columns: list[Column] = [
        ("slice", lambda s: f"{s['slice']}: {s['value']}"), ("texts", lambda s: count(s["n"])),
        ("teacher", lambda s: percent(s["teacher"])),
        ("candidate", lambda s: percent(s["candidate"])),
        ("teacher's gap", lambda s: signed(s["teacher_gap"])),
        ("candidate's gap", lambda s: signed(s["gap"])),
        ("lost, 95 %", lambda s: f"{signed(s['low'])} to {signed(s['high'])}"
            if known(s.get("low")) and known(s.get("high")) else DASH),
    ]  # fmt: skip
    rows = [Bar(f"{s['slice']}: {s['value']}", (s["teacher_gap"], s["gap"])) for s in found]
    drawing = bars(rows[:SHOWN], title="Gap of accuracy to the overall, points: " + _said(rows),
                   kinds=BOTH, text=lambda v: signed(v, 1))  # fmt: skip
    caption = "Accuracy by slice; gap: against the model's own overall accuracy, points"
    drawn = figure("Accuracy minus overall accuracy, points", drawing)
    left_out = facts(
        [
            "Of too few texts to say anything: "
            + ", ".join(f"{s['slice']}: {s['value']} ({count(s['n'])})" for s in small)
            + "."
        ]
        if small
        else []
    )
    return Section("slices", "Slice by slice",
                   key() + pair(drawn, table(caption, columns, found)) + left_out)  # fmt: skip


def elsewhere(evidence: Mapping[str, Any]) -> Section | None:
    """Texts that are not like those of training, and texts that are too much so."""
    lines, body = [], ""
    if ood := evidence.get("ood"):
        lines.append(f"Texts from elsewhere ({ood['source']}, {count(ood['n'])}) are told apart by "
                     f"{ood['score']}: AUROC {fixed(ood['auroc']['candidate'], 3)} for the candi"
                     f"date, {fixed(ood['auroc']['teacher'], 3)} for the teacher.")  # fmt: skip
    if memory := evidence.get("memorisation"):
        lines.append(f"Near-duplicates of training texts ({count(memory['pairs'])} pairs) are "
                     f"answered with a confidence of {fixed(memory['confidence_near'], 3)}, their "
                     f"neighbours with {fixed(memory['confidence_far'], 3)}: a gap of "
                     f"{signed(memory['gap'], 3)} (95 %: {signed(memory['low'], 3)} to "
                     f"{signed(memory['high'], 3)}).")  # fmt: skip
    if vocabulary := evidence.get("vocabulary"):
        shares = "; ".join(
            f"{row['texts']} {percent(row['student'], 4)} (before trimming "
            f"{percent(row['source'], 4)})" for row in vocabulary["unknown"])  # fmt: skip
        lines.append(f"Unknown among the pieces of a tokenizer of {count(vocabulary['pieces'])}: "
                     f"{shares}.")  # fmt: skip
    if long := evidence.get("long_texts"):
        lines.append(f"Long texts ({long['source']}, {count(long['n'])}): "
                     f"{percent(long['truncated_share'], 1)} are cut off; accuracy where a test "
                     f"text stands before them {percent(long['candidate'])} for the candidate, "
                     f"{percent(long['teacher'])} for the teacher.")  # fmt: skip
        asked: list[Column] = [
            ("a test text is", lambda r: str(r["name"])),
            ("teacher right", lambda r: percent(r["teacher"])),
            ("candidate right", lambda r: percent(r["candidate"])),
            ("same answer", lambda r: percent(r["agreement"])),
            ("teacher’s confidence", lambda r: fixed(r["teacher_confidence"], 3)),
            ("candidate’s confidence", lambda r: fixed(r["candidate_confidence"], 3)),
        ]
        body += table("Long texts: what stands after the cut is not read", asked, long["rows"])
    if scripts := evidence.get("scripts"):
        columns: list[Column] = [
            ("script", lambda s: str(s["script"])), ("texts", lambda s: count(s["n"])),
            ("unknown pieces", lambda s: percent(s["unknown_share"], 1)),
            ("mean confidence", lambda s: fixed(s["mean_confidence"], 3)),
        ]  # fmt: skip
        body += table(
            "Other scripts: it never learned them, and should not be sure", columns, scripts
        )
    return Section("elsewhere", "Texts from elsewhere, and from too near", facts(lines) + body
                   ) if lines or body else None  # fmt: skip


def depth(found: Sequence[Record] | None) -> Section | None:
    """Accuracy against mean latency over the confidence asked for; none without early exits."""
    if not found:
        return None
    rows = list({(r["latency_ms"], r["accuracy"]): r for r in found}.values())
    marks = [Point((f"{r['confidence']:g}",), r["latency_ms"], 100 * r["accuracy"],
                   "candidate" if r["served"] else "stage") for r in rows]  # fmt: skip
    worst, best = min(p.y for p in marks), max(p.y for p in marks)
    said = "; ".join(f"at {p.names[0]} {p.y:.2f} % in {p.x:.3g} ms" for p in marks)
    drawn = figure("Over the confidence asked for", scatter(
        marks, title=f"accuracy in % over mean latency in ms: {said}",
        x_label="mean latency, ms, log scale", y_label="accuracy, %", x_text=significant,
        foot=worst - 0.25 * max(best - worst, 0.5)))  # fmt: skip
    columns: list[Column] = [
        ("stops at", lambda r: f"{r['confidence']:g}"),
        ("accuracy", lambda r: percent(r["accuracy"])),
        *((f"exit {n + 1}" if n + 1 < len(found[0]["share"]) else "to the end",
           lambda r, n=n: percent(r["share"][n])) for n in range(len(found[0]["share"]))),
        ("mean ms", lambda r: significant(r["latency_ms"])),
        ("served", lambda r: "yes" if r["served"] else DASH),
    ]  # fmt: skip
    lead = ("Easy texts leave at an early exit, the first whose softmax is as sure as asked. The "
            "served confidence was chosen on validation. Latency: each exit timed on its own, "
            "batch 1, averaged by the shares that stop there.")  # fmt: skip
    shares = table("Share of the texts that stop at each exit", columns, found, words=["served"])
    return Section("depth", "Adaptive depth", paragraph(lead, "soft") + pair(drawn, shares))


def speed(grid: Sequence[Record] | None, engine: Record | None) -> Section | None:
    """Latency over batch, length and threads."""
    body = ""
    if engine:
        body += facts([f"Text to label {milliseconds(engine['text_to_label_p50'])}, the bare "
                       f"engine on ready token ids {milliseconds(engine['engine_p50'])}: "
                       f"{fixed(engine['ratio'], 2)}×."])  # fmt: skip
    if grid:
        columns: list[Column] = [
            ("model", lambda r: str(r["model"])), ("batch", lambda r: count(r["batch"])),
            ("pieces", lambda r: _plain(r.get("pieces"))),
            ("threads", lambda r: str(r.get("threads", DASH))),
            ("p50 ms", lambda r: significant(r["p50"])),
            ("p95 ms", lambda r: significant(r["p95"])),
            ("p99 ms", lambda r: significant(r["p99"])),
            ("texts per s", lambda r: count(r["texts_per_s"])),
        ]  # fmt: skip
        body += table("A call of one batch, all models interleaved", columns, grid)
    return Section("latency", "Speed by batch, length and threads", body) if body else None


def energy_section(found: Record | None) -> Section | None:
    """What the pipeline used, and when that is paid back."""
    if not found:
        return None
    stages = [s for s in found.get("stages") or [] if known(s.get("kwh"))]
    rows = [Bar(s["stage"], (s["kwh"],)) for s in stages]
    body = ""
    if known(found.get("pipeline_kwh")):
        saved, after = found.get("saved_kwh_per_1k"), found.get("pays_back_after_predictions")
        lines = [f"Fetch to quantize used {energy(found['pipeline_kwh'])} ({found.get('method')})."]
        if known(saved) and known(after):
            lines.append(f"It saves {energy(saved)} per 1,000 predictions, and has paid itself "
                         f"back after {count(after)} predictions.")  # fmt: skip
        body += facts(lines)
    if rows:
        drawn = figure("Energy by stage", bars(
            rows, title="Energy by stage: " + "; ".join(
                f"{s['stage']} {energy(s['kwh'])}" for s in stages),
            kinds=["stage"], text=energy))  # fmt: skip
        columns: list[Column] = [
            ("stage", lambda s: str(s["stage"])), ("energy", lambda s: energy(s["kwh"])),
            ("time", lambda s: f"{significant(s.get('seconds'))} s"),
            ("method", lambda s: str(s.get("method") or DASH)),
        ]  # fmt: skip
        body += pair(drawn, table("Energy of the pipeline", columns, stages, words=["method"]))
    return Section("energy", "Energy to solution", body) if body else None


def _two_digits(value: float | None) -> str:
    return significant(value, 2)


def _plain(value: float | None) -> str:
    return fixed(value, 0 if value is not None and float(value).is_integer() else 1)


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else significant(p, 2)


def _said(rows: Sequence[Bar]) -> str:
    """The figures of a chart in words."""
    return "; ".join(f"{row.label} " + ", ".join(DASH if v is None else significant(v)
                     for v in row.values) for row in rows)  # fmt: skip
