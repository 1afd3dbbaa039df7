"""The chain as a flow: one task a stage, then registered, then promoted if asked.

    stillroom compress --promote            # in the checkout
    stillroom compress --recipe smoke       # in a workspace of its own

DVC alone decides what is up to date. What this adds is order, retries, timeouts,
cancellation, a record in MLflow and the registry: never results.
"""
# ruff: noqa: E402

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.console import Progress, load_offline_env

load_offline_env()  # prefect reads its environment at import

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed

from flows import dvc, provenance, stack
from flows.depth import require_depth
from flows.ending import plumbing, refusal, show
from flows.follow import Following
from flows.next_command import about
from flows.workspace import Workspace, materialize, resolve
from tasks import home
from tasks.errors import GateRefused, StillroomError, UnavailableError, UsageError
from tasks.hardware import detect_profile
from tasks.params import fingerprint
from tasks.release.naming import model_name
from tasks.stage_files import read_json
from tasks.tracking import Tracker

HOURS = 3600
TIMEOUT_S = {"fetch": 1 * HOURS, "validate": 2 * HOURS}
DEFAULT_TIMEOUT_S = 12 * HOURS
FETCH_RETRY_S = [5.0, 20.0]
"""Waits before the second and third try of a fetch that found the network away."""
DOCUMENTS = ("params.yaml", "dvc.lock", "metrics/gate.json", "reports/summary.json",
             "reports/summary.md", "reports/index.html", "reports/pareto.png")  # fmt: skip
"""Kept with a registered version, as far as they exist."""


@dataclass
class Pipeline:
    """One run: where, how it is shown and recorded, and what came of it so far."""

    workspace: Workspace
    progress: Progress
    tracker: Tracker
    changed: set[str]
    """Stages that were out of date when it began."""
    ran: list[str] = field(default_factory=list)
    outcome: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Where the stages run."""
        return self.workspace.path


_PREPARED: ContextVar[Pipeline | None] = ContextVar("_PREPARED", default=None)
"""What `run` has made ready while Prefect's server was starting."""


@flow(name="compress", persist_result=False, validate_parameters=False)
def compress(
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    workspace: str | None = None,
    promote: bool = False,
) -> dict[str, Any]:
    """Bring every stage up to date, judge, register, and promote if asked.

    Args:
        recipe: of ``infra/recipes``.
        overrides: ``section.key=value``, laid over the recipe.
        workspace: folder to run in.
        promote: move the alias champion when the gate passes.

    Returns:
        What ``stillroom compress --json`` prints.

    Raises:
        StillroomError: as the stage, the gate or the registry raised it.
    """
    if (prepared := _PREPARED.get()) is not None:
        return execute(prepared, promote=promote)
    with opened(resolve(recipe, overrides, workspace), Progress()) as pipeline:
        return execute(pipeline, promote=promote)


@contextlib.contextmanager
def opened(workspace: Workspace, progress: Progress) -> Iterator[Pipeline]:
    """Hold the workspace, lay it out, see what is to do, and begin the record of the run.

    Raises:
        UnavailableError: the workspace is in use.
    """
    with dvc.held(workspace.path), progress:
        materialize(workspace)
        tracker = Tracker(workspace.path, experiment=model_name(workspace.params))
        tracker.open(
            name=workspace.name,
            params=workspace.params.model_dump(mode="json"),
            tags={
                **provenance.tags(workspace.path),
                "hardware_profile": workspace.params.hardware.profile,
                "machine_profile": detect_profile(),
                "workspace": workspace.name,
                "params_fingerprint": fingerprint(workspace.params),
            },
        )
        pipeline = Pipeline(workspace, progress, tracker, dvc.changed(workspace.path))
        try:
            yield pipeline
        except BaseException as error:
            refused = isinstance(error, GateRefused)
            killed = isinstance(error, KeyboardInterrupt) or not isinstance(error, Exception)
            status = "FINISHED" if refused else "KILLED" if killed else "FAILED"
            verdict = "refused" if refused else "none"
            tags = {"verdict": verdict, "error": str(error)[:4000]}
            if (version := pipeline.outcome.get("version")) is not None:
                tags["version"] = version  # registered, then refused at its promotion
            lost = tracker.close(status, tags=tags)
            _warn_lost(progress, lost)
            raise
        version = pipeline.outcome.get("version")
        verdict = "passed" if pipeline.outcome.get("passed") else "none"
        lost = tracker.close("FINISHED", tags={"verdict": verdict, "version": version})
        pipeline.outcome["unrecorded"] = lost
        _warn_lost(progress, lost)


def execute(pipeline: Pipeline, *, promote: bool) -> dict[str, Any]:
    """The chain itself, inside a flow."""
    names = dvc.stages(pipeline.root)
    pipeline.outcome.update(
        model=model_name(pipeline.workspace.params), workspace=str(pipeline.root), passed=False,
        verdict=None, version=None, promoted=False, ratios={}, stages_run=pipeline.ran,
    )  # fmt: skip
    touched = False
    for position, name in enumerate(names, start=1):
        touched = touched or name in pipeline.changed
        stage = task(
            name=name,
            cache_policy=NO_CACHE,
            persist_result=False,
            timeout_seconds=TIMEOUT_S.get(name, DEFAULT_TIMEOUT_S),
            retries=len(FETCH_RETRY_S) if name == "fetch" else 0,
            retry_delay_seconds=FETCH_RETRY_S,
            retry_condition_fn=_network_was_away,
        )(_stage(pipeline, name, (position, len(names)), touched))
        stage()
        if name == "fetch":
            require_depth(pipeline.root, pipeline.workspace.params)
        if name == "validate":
            judge(pipeline)
    if (pipeline.root / "data" / "models" / "deploy").is_dir():
        release(pipeline, promote=promote)
    return pipeline.outcome


def _stage(
    pipeline: Pipeline, name: str, position: tuple[int, int], touched: bool
) -> Callable[[], State[bool]]:
    """The body of a stage's task: up to date at its end; Cached when nothing had to run."""

    def up_to_date() -> State[bool]:
        if not touched:
            pipeline.tracker.end(name, _outputs(pipeline.root, name), ran=False)
            return Completed(name="Cached", message="up to date", data=False)
        started = time.monotonic()
        pipeline.progress.begin(name, *position)
        try:
            ran = _reproduce(pipeline, name)
        except BaseException as error:
            pipeline.progress.end("failed", time.monotonic() - started)
            pipeline.tracker.fail(name, str(error) or type(error).__name__)
            raise
        pipeline.progress.end("done" if ran else "from the cache", time.monotonic() - started)
        pipeline.tracker.end(name, _outputs(pipeline.root, name), ran=ran)
        if ran:
            pipeline.ran.append(name)
            return Completed(data=True)
        return Completed(name="Cached", message="out of DVC's cache", data=False)

    return up_to_date


def _reproduce(pipeline: Pipeline, name: str) -> bool:
    def curve(rows: Sequence[dict[str, Any]]) -> None:
        pipeline.progress.curve(rows[-1])
        pipeline.tracker.curve(name, rows)

    with Following(pipeline.root / "metrics" / f"{name}.history.jsonl", curve):
        return dvc.reproduce(
            name,
            pipeline.root,
            on_line=pipeline.progress.line,
            on_start=lambda: pipeline.tracker.begin(name),
        )


def _outputs(root: Path, name: str) -> str:
    return dvc.output_sha256(dvc.locked(root).get(name, {}))


def _network_was_away(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether a failed try is worth another: only where something was out of reach."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, UnavailableError)


def judge(pipeline: Pipeline) -> None:
    """Read the verdict that validate left.

    Raises:
        GateRefused: lists every failing check by name, value and limit.
    """
    gate = read_json(pipeline.root / "metrics" / "gate.json")
    summary = read_json(pipeline.root / "reports" / "summary.json")
    pipeline.outcome.update(
        passed=bool(gate.get("passed")), verdict=gate or None, ratios=summary.get("ratios", {})
    )
    if not gate.get("passed"):
        discard_bundle(pipeline.root)
        raise GateRefused(
            refusal(gate),
            next_command=f"stillroom report --workspace {shlex.quote(str(pipeline.root))}",
        )


def discard_bundle(root: Path) -> None:
    """Remove the bundle of an earlier run in this place: there is none of the refused one."""
    shutil.rmtree(root / "data" / "models" / "deploy", ignore_errors=True)
    for name in ("deploy.json", "deploy.runtime.json"):
        (root / "metrics" / name).unlink(missing_ok=True)


def release(pipeline: Pipeline, *, promote: bool) -> None:
    """Register the bundle as challenger, and make it champion if asked."""
    from tasks.release import registry

    name, root = pipeline.outcome["model"], pipeline.root
    documents = {Path(d).name: root / d for d in DOCUMENTS if (root / d).exists()}
    registered = registry.register(
        root / "data" / "models" / "deploy",
        name=name,
        documents=documents,
        release=provenance.release(root, pipeline.workspace.params.promotion),
        run_id=pipeline.tracker.run_id(),
    )
    pipeline.outcome["version"] = registered.version
    what = "registered" if registered.created else "known already"
    pipeline.progress.note(f"{name} version {registered.version}: {what}")
    if not promote:
        return
    try:
        move = registry.promote(
            name, version=registered.version, why="stillroom compress --promote"
        )
    except UsageError as error:  # withdrawn: a person brings it back, not a run
        pipeline.progress.note(f"{name} version {registered.version}: not promoted. {error}")
        return
    pipeline.outcome["promoted"] = True
    pipeline.progress.note(move.note or f"{name} version {registered.version}: champion")


def run(
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    workspace: str | None = None,
    promote: bool = False,
    as_json: bool = False,
) -> int:
    """What ``stillroom compress`` does: the flow, where it stands, a table, what to type next.

    Raises:
        StillroomError: for the command line to print and to exit with its code; a
            refusal by the gate comes after table and JSON.
    """
    with about(recipe, overrides, workspace, promote):
        resolved = resolve(recipe, overrides, workspace)
        progress = Progress(to_stderr=as_json)
        outcome: dict[str, Any] = {}
        refused: GateRefused | None = None
        with _terminable(), dvc.held(resolved.path):
            server = stack.prefect_api()
            try:
                with opened(resolved, progress) as pipeline:
                    outcome = pipeline.outcome
                    progress.note(plan(pipeline))
                    _in_prefect(pipeline, server, recipe, tuple(overrides), workspace, promote)
            except GateRefused as error:
                refused = error
            outcome["plumbing"] = plumbing(resolved.path, outcome["stages_run"])
        show(outcome, progress, resolved.path)
        if as_json:
            print(json.dumps(outcome), flush=True)
        if refused is not None:
            raise refused
        if outcome["unrecorded"]:
            raise UnavailableError(
                f"MLflow at {home.tracking_uri()}: this run's record is incomplete "
                f"({outcome['unrecorded'][0]}); its results stand",
                next_command="stillroom compress"
                "  # finds nothing to do, and records what is missing",
            )
    return 0


def plan(pipeline: Pipeline) -> str:
    """One line: where, and what is out of date."""
    stale = [name for name in dvc.stages(pipeline.root) if name in pipeline.changed]
    return f"{pipeline.root}: " + (f"from {stale[0]} on" if stale else "nothing to do")


def _in_prefect(
    pipeline: Pipeline,
    server: stack.Server,
    recipe: str | None,
    overrides: Sequence[str],
    workspace: str | None,
    promote: bool,
) -> None:
    """Call the flow with a Prefect API to report to; raises what the flow raises."""
    os.environ["PREFECT_API_URL"] = server.wait()  # for threads, which inherit no settings
    token = _PREPARED.set(pipeline)
    try:
        with temporary_settings({PREFECT_API_URL: server.url}):
            compress(recipe, overrides, workspace, promote)
    except (StillroomError, KeyboardInterrupt):
        raise
    except Exception as error:
        if not server.alive() or "Failed to reach API" in str(error):
            raise UnavailableError(
                f"Prefect at {server.url}: went away during the run ({type(error).__name__})",
                next_command="stillroom compress  # goes on where this one stopped",
            ) from error
        raise
    finally:
        _PREPARED.reset(token)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C for as long as this lasts, so that no stage is left behind."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever runs this one sees to signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _warn_lost(progress: Progress, lost: Sequence[str]) -> None:
    for line in lost:
        progress.note(f"warning: not recorded in MLflow: {line}")
