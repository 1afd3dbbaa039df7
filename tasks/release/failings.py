"""Where the model fails: the section of the model card that evidence on test fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
LEVEL = 0.05
TEST = "McNemar's exact test, 5 % over all slices"


def failings(evidence: Record) -> str:
    """Markdown: classes, altered texts, slices, swaps, texts from elsewhere; "" without evidence.

    Args:
        evidence: ``evidence`` of `metrics/validate.json`, each member present or not.
    """
    parts = [
        _flips(evidence.get("flips")),
        _classes(evidence.get("per_class") or [], evidence.get("confusions") or []),
        _slices(evidence.get("slices") or []),
        _small_slices(evidence.get("small_slices") or []),
        _altered(evidence.get("robustness") or []),
        _swapped(evidence.get("counterfactual") or []),
        _elsewhere(evidence),
    ]
    shown = [part for part in parts if part]
    return "\n\n".join(["## Where it fails", *shown]) if shown else ""


def _flips(flips: Record | None) -> str:
    if not flips:
        return ""
    return (
        f"{_share(flips['rate'])} % of the test texts get another label than from the teacher: "
        f"{_share(flips['helped'])} % now right, {_share(flips['hurt'])} % now wrong, "
        f"{_share(flips['both_wrong'])} % wrong both times."
    )


def _classes(classes: Sequence[Record], confusions: Sequence[Record]) -> str:
    lost = [c for c in classes if c["drop"] and c["drop"] > 0]
    text = ""
    if lost:
        rows = [[_cell(c["label"]), f"{c['n']:,}", _share(c["teacher_recall"]),
                 _share(c["candidate_recall"]), _points(c["drop"])] for c in lost]  # fmt: skip
        text = "Classes that lost most recall:\n\n" + _table(
            ["class", "test texts", "teacher %", "this model %", "lost, points"], rows
        )
    worse = [c for c in confusions if c["candidate"] > c["teacher"]]
    if worse:
        said = "; ".join(f"{_cell(c['label'])} answered as {_cell(c['answered'])} "
                         f"({c['candidate']} times, the teacher {c['teacher']})"
                         for c in worse)  # fmt: skip
        text += ("\n\n" if text else "") + f"More often confused than by the teacher: {said}."
    return text


def _slices(slices: Sequence[Record]) -> str:
    """All slices, and in words those whose loss is more than chance."""
    if not slices:
        return ""
    failing = [s for s in slices if s["p_value"] < LEVEL and s["candidate"] < s["teacher"]]
    names = ", ".join(_cell(f"{s['slice']} {s['value']}") for s in failing)
    said = (
        f"Slices that lose against the teacher beyond chance ({TEST}): **{names}**."
        if failing
        else f"No slice loses against the teacher beyond what chance explains ({TEST})."
    )
    rows = [[_cell(f"{s['slice']}: {s['value']}"), f"{s['n']:,}", _share(s["teacher"]),
             _share(s["candidate"]), _points(s["gap"]), _points(s["teacher_gap"])]
            for s in slices]  # fmt: skip
    head = ["slice", "test texts", "teacher %", "this model %", "gap, points", "teacher's gap"]
    return f"{said}\n\n{_table(head, rows)}"


def _small_slices(slices: Sequence[Record]) -> str:
    named = ", ".join(_cell(f"{s['slice']} {s['value']} ({s['n']})") for s in slices)
    return f"Nothing is known of slices of too few test texts: {named}." if slices else ""


def _altered(robustness: Sequence[Record]) -> str:
    if not robustness:
        return ""
    rows = [[_cell(r["name"]), _share(r["teacher"]), _share(r["candidate"]),
             _points(r["teacher_drop"]), _points(r["candidate_drop"])]
            for r in robustness]  # fmt: skip
    head = ["altered texts", "teacher %", "this model %", "teacher lost, points", "lost, points"]
    return _table(head, rows)


def _swapped(swaps: Sequence[Record]) -> str:
    lines = [f"- Counterfactual, {_cell(s['name'])}: {_share(s['candidate_flip_rate'])} % of "
             f"{s['n']:,} answers change (the teacher's: {_share(s['teacher_flip_rate'])} %)."
             for s in swaps]  # fmt: skip
    return "\n".join(lines)


def _elsewhere(evidence: Record) -> str:
    lines = []
    if ood := evidence.get("ood"):
        lines.append(
            f"- Texts from elsewhere ({_cell(ood['source'])}): {_cell(ood['score'])} tells them "
            f"apart with an AUROC of {ood['auroc']['candidate']:.3f} (the teacher's "
            f"{ood['auroc']['teacher']:.3f}; 0.5 is chance)."
        )
    if memory := evidence.get("memorisation"):
        lines.append(
            f"- Memorisation: near-duplicates of training texts get {memory['gap']:+.3f} "
            f"confidence (95 %: {memory['low']:+.3f} to {memory['high']:+.3f}) against the test "
            "texts most like them."
        )
    for row in (evidence.get("vocabulary") or {}).get("unknown", []):
        lines.append(
            f"- Unknown pieces in texts of `{row['texts']}`: {100 * row['student']:.4f} % (before "
            f"the vocabulary was trimmed {100 * row['source']:.4f} %)."
        )
    if long := evidence.get("long_texts"):
        lines.append(
            f"- Long texts ({_cell(long['source'])}): {_share(long['truncated_share'])} % are cut "
            f"off; accuracy {_share(long['candidate'])} % where what is asked comes first (the "
            f"teacher's {_share(long['teacher'])} %)."
        )
    for script in evidence.get("scripts") or []:
        lines.append(
            f"- {_cell(script['script'])} script: {_share(script['unknown_share'])} % of the "
            f"pieces are unknown, mean confidence {script['mean_confidence']:.3f}."
        )
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _cell(text: object) -> str:
    """Text from data as it is: no column, line or element of its own."""
    flat = " ".join(str(text).split())
    for mark, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("`", "\\`")):
        flat = flat.replace(mark, safe)
    return flat


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
