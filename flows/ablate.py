"""What each technique of a recipe is worth: the recipe again, one switched off at a time.

    stillroom ablate --recipe smoke --dry-run
    stillroom ablate --recipe headline --technique none --seeds 3

Every run is a `stillroom compress` of its own, in a workspace of its own, one after
another: DVC's run cache hands over the stages that two of them share, and a run that was
cut off goes on where it stopped. Nothing is promoted, and what passes its gate is
registered under another name (``ablation-…``): the recipe's own model keeps its registry
to itself. A refusal by the gate is a result like any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import child
from flows.ablation_plan import (
    Asked,
    Axis,
    Job,
    Plan,
    axis_of,
    dry,
    duration,
    plan,
    remaining_s,
    seeds_of,
    stage_seconds,
    what,
)
from flows.console import Progress
from flows.workspace import Workspace, resolve
from tasks import home
from tasks.errors import (
    GateRefused,
    IntegrityError,
    StillroomError,
    UnavailableError,
    UsageError,
)
from tasks.evaluation.ablation import (
    Figures,
    Report,
    Run,
    Variant,
    ablation,
    page_markdown,
    table_markdown,
)
from tasks.evaluation.ablation_plot import plot_ablation
from tasks.evaluation.readme import section, write_section
from tasks.evaluation.techniques import check_names
from tasks.files import write_json, write_text
from tasks.params import fingerprint
from tasks.stage_files import read_json

SPLITS = ("validation", "test")
OVERHEAD_S = 20.0
"""Of a run apart from the stages' own work, for the estimate of what remains."""


@dataclass
class Results:
    """What has been measured so far."""

    asked: Asked
    axis: Axis
    seeds: list[int]
    """Values along the axis."""
    folder: Path
    full: list[Run] = field(default_factory=list)
    without: dict[str, list[Run]] = field(default_factory=dict)
    """By technique."""
    planned: Plan | None = None
    """The latest: every seed has the same techniques."""
    work_s: dict[str, float] = field(default_factory=dict)
    """What each stage of the full recipe took."""
    failure: StillroomError | None = None
    """Of the first variant that failed."""


def place(recipe: str | None) -> str:
    """The section of a page that a table goes to: each recipe's own."""
    return f"ablation-{recipe}" if recipe else "ablation"


def run(
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    *,
    seeds: int = 1,
    techniques: Sequence[str] = (),
    split: str = "validation",
    dry_run: bool = False,
    as_json: bool = False,
    out: Path | None = None,
    write: Path | None = None,
) -> int:
    """What ``stillroom ablate`` does.

    Raises:
        UsageError: an unknown technique or split, wrong params, or a page without markers.
        GateRefused: a stage limit stopped the full recipe, with every seed.
        StillroomError: as a run raised it. A variant that fails does not keep the others from
            being measured, unless what failed is the disk, the network, a server or a hash.
    """
    if split not in SPLITS:
        raise UsageError(
            f"--split: found {split!r}, expected {' or '.join(SPLITS)}",
            next_command="stillroom ablate --split validation",
        )
    recipe_run = resolve(recipe, overrides)
    check_names(techniques, recipe_run.params)
    asked = Asked(recipe, tuple(overrides), seeds, tuple(techniques), split)
    if dry_run:
        tell_plan(dry(asked, recipe_run), as_json=as_json)
        return 0
    if write is not None:
        section(write, place(recipe))  # hours before it is needed
    progress = Progress(to_stderr=as_json)
    folder = (out or default_out(asked, recipe_run)).expanduser().resolve()
    results = Results(asked, axis_of(recipe_run.params), seeds_of(asked, recipe_run), folder)
    with _terminable():
        execute(results, recipe_run, progress)
    report = save(results, complete=True)
    if write is not None:
        write_section(write, place(recipe), table_markdown(report))
    progress.note(f"\n{folder}/ablation.md")
    print(json.dumps(report, ensure_ascii=False) if as_json else table_markdown(report), flush=True)
    if results.failure is not None:
        raise results.failure
    return 0


def default_out(asked: Asked, recipe_run: Workspace) -> Path:
    """``var/ablations/<recipe>-<hash>``: the same question has the same folder."""
    question = [fingerprint(recipe_run.params), asked.seeds, sorted(asked.wanted), asked.split]
    mark = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:8]
    return home.home() / "ablations" / f"{asked.recipe or 'params'}-{mark}"


def tell_plan(found: dict[str, Any], *, as_json: bool) -> None:
    """Print a dry run: JSON, or lines that a shell could run."""
    if as_json:
        print(json.dumps(found), flush=True)
        return
    for row in found["runs"]:
        print(f"# {row['technique']}, seed {row['seed']}: differs from {row['from']} on")
        print(row["command"])
    for name, reason in found["left_out"].items():
        print(f"# {name}: left out, {reason}")


def execute(results: Results, recipe_run: Workspace, progress: Progress) -> None:
    """Run seed after seed, and write the report anew after each run.

    Raises:
        StillroomError: what leaves nothing to compare, or would meet every other run, too.
    """
    asked, seeds = results.asked, results.seeds
    for position, seed in enumerate(seeds):
        planned = results.planned = plan(asked, recipe_run, seed)
        say_begin(results, planned.full, progress, estimate(results, planned, position, 0))
        full, error = attempt(planned.full, asked, results.folder, progress)
        if error is not None:
            raise error
        results.full.append(full)
        results.work_s = stage_seconds(planned.full.workspace.path)
        planned = results.planned = plan(asked, recipe_run, seed)  # layers can be counted now
        save(results, complete=False)
        for done, job in enumerate(planned.variants if full.figures else (), start=1):
            say_begin(results, job, progress, estimate(results, planned, position, done))
            found, error = attempt(job, asked, results.folder, progress)
            if isinstance(error, UnavailableError | IntegrityError):
                raise error
            results.failure = results.failure or error
            results.without.setdefault(job.name, []).append(found)
            save(results, complete=False)
    if not any(one.figures for one in results.full):
        raise GateRefused(
            f"the full recipe has no figures to compare with: {results.full[0].note}",
            next_command=asked.command("gate.stage_drop={distill: 100, prune: 100, finetune: 100}"),
        )


def attempt(
    job: Job, asked: Asked, folder: Path, progress: Progress
) -> tuple[Run, StillroomError | None]:
    """Bring one variant up to date in a process of its own, and read what it measured.

    Returns:
        The run, and its error where it failed in another way than at a limit.
    """
    log = folder / "logs" / f"{job.name}-{job.seed}.log"
    ended = child.run(job.command(asked.recipe), log=log, progress=progress)
    name, outcome = job.workspace.name, ended.outcome
    if not outcome.get("verdict"):
        error = ended.error()
        progress.line(error.message)
        if isinstance(error, GateRefused):
            return Run(job.seed, "stopped", note=error.message, workspace=name), None
        message = f"{what(job)}, seed {job.seed}: {error.message}"
        failed = type(error)(message, next_command=error.next_command)
        return Run(job.seed, "failed", note=error.message, workspace=name), failed
    figures = measured(job.workspace.path, asked.split)
    progress.line(
        f"{figures.primary} {100 * figures.quality:.2f} %, {figures.retained:.2%} retained, "
        f"{figures.file_bytes:,} bytes, {figures.speed:.1f}× the teacher's speed"
    )
    if outcome["passed"]:
        return Run(job.seed, "passed", figures, workspace=name), None
    checks = [check["metric"] for check in outcome["verdict"]["checks"] if not check["passed"]]
    note = f"by the gate, on test: {', '.join(checks)}"
    return Run(job.seed, "refused", figures, note, name), None


def measured(root: Path, split: str) -> Figures:
    """What a finished run's workspace holds: quality on a split, bytes and p50 as served.

    Raises:
        UnavailableError: a file is missing or has no such figure.
    """
    summary = read_json(root / "reports" / "summary.json")
    try:
        teacher, candidate = summary["stages"][0], summary["stages"][-1]
        primary: str = summary["primary"]
        qualities, n = (candidate["quality"], teacher["quality"]), summary["n"]
        if split == "validation":
            files = (read_json(root / "metrics" / f"{name}.json") for name in
                     ("quantize", "baseline", "prepare"))  # fmt: skip
            served, frozen, prepared = files
            qualities = served["validation"], frozen["validation"]
            n = prepared["rows"]["validation"]
        return Figures(
            quality=float(qualities[0][primary]),
            teacher_quality=float(qualities[1][primary]),
            file_bytes=int(candidate["file_bytes"]),
            teacher_bytes=int(teacher["file_bytes"]),
            p50_ms=float(candidate["latency_ms"]["p50"]),
            teacher_p50_ms=float(teacher["latency_ms"]["p50"]),
            primary=primary,
            n=int(n),
        )
    except (KeyError, IndexError, TypeError) as error:
        raise UnavailableError(
            f"{root}: found no figure for {error}, expected those of a finished run",
            next_command=f"stillroom report --workspace {root}",
        ) from error


def save(results: Results, *, complete: bool) -> Report:
    """Write ablation.json, ablation.md and ablation.png."""
    planned = results.planned
    report = ablation(
        results.full,
        [
            Variant(technique.name, technique.meaning, off, tuple(results.without[technique.name]))
            for technique, off in (planned.techniques if planned else ())
            if technique.name in results.without
        ],
        recipe=results.asked.recipe,
        overrides=results.asked.overrides,
        split=results.asked.split,
        seeds=results.seeds,
        left_out=planned.left_out if planned else {},
        complete=complete,
        by=results.axis.name,
    )
    write_json(results.folder / "ablation.json", report)
    write_text(results.folder / "ablation.md", page_markdown(report))
    plot_ablation(report, results.folder / "ablation.png")
    return report


def estimate(results: Results, planned: Plan, position: int, done: int) -> float | None:
    """Seconds that remain where nothing is cached; None before the full recipe has run.

    Args:
        results: so far.
        planned: the seed at hand.
        position: of that seed.
        done: finished runs of that seed, the full recipe being the first.
    """
    if not results.work_s:
        return None
    stages = list(results.work_s)
    firsts = [job.first for job in (planned.full, *planned.variants)]
    # a further seed's students are new, a further fold's data; its variants share what its full
    # recipe has made
    later = [results.axis.first, *firsts[1:]] * (len(results.seeds) - position - 1)
    ahead = firsts[done:] + later
    return remaining_s(ahead, stages, results.work_s, OVERHEAD_S)


def say_begin(results: Results, job: Job, progress: Progress, left_s: float | None) -> None:
    """One line before a run: which, and how long all that is left may take."""
    left = "" if left_s is None else f", about {duration(left_s)} left, less what the cache has"
    number = len(results.full) + sum(map(len, results.without.values())) + 1
    total = len(results.seeds) * (1 + len(results.planned.variants if results.planned else ()))
    progress.note(f"{number} of {total}: {what(job)}, {results.axis.name} {job.seed}{left}")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that the run at work is ended, too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
