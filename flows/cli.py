"""`stillroom …`: the commands.

Thin: each command imports what it needs when it runs, so that `predict` answers and
`rollback` moves without waiting for libraries that they do not use. With ``--json``
stdout gets one JSON object and nothing else. An error goes to stderr, without a
traceback, and its code becomes the exit code (`tasks.errors`).
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from flows.typed import utf8
from tasks.errors import StillroomError, UnavailableError, UsageError
from tasks.home import CHECKOUT

app = typer.Typer(
    help="Make a transformer small on a schedule, and ship only what passes the gate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Recipe = Annotated[
    str | None, typer.Option(metavar="NAME", help="infra/recipes/NAME.yaml over params.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One parameter; may be repeated."),
]
Page = Annotated[
    Path | None, typer.Option(metavar="PAGE", help="Write the table into this Markdown page.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Registered model; params.yaml's by default."),
]
LAST = 2**31 - 1
"""No version has a higher number."""
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]


def main() -> None:
    """Entry point: run a command, turn an error into a message and an exit code."""
    try:
        app()
    except StillroomError as error:
        if os.environ.get("STILLROOM_DEBUG") == "1":
            traceback.print_exception(error)
        _say(f"error: {error}", colour="red")
        sys.exit(error.exit_code)
    except SystemExit as done:  # Typer makes one of an interrupt, and says nothing
        if isinstance(getattr(done.__context__, "__cause__", None), KeyboardInterrupt):
            _say("interrupted\n  next: stillroom status --history", colour="red")
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if os.environ.get("STILLROOM_DEBUG") == "1":
            raise
        _say(f"error: {error.filename or 'the system'}: {error.strerror or error}", colour="red")
        _say("  next: stillroom doctor", colour=None)
        sys.exit(UnavailableError.exit_code)
    except Exception as error:
        if os.environ.get("STILLROOM_DEBUG") == "1":
            raise
        _say(f"error: {type(error).__name__}: {error}", colour="red")
        command = " ".join(["stillroom", "--debug", *sys.argv[1:]])
        _say(f"  this is a fault of Stillroom's; for the traceback: {command}", colour=None)
        sys.exit(1)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Tracebacks of unexpected errors.")
    ] = False,
) -> None:
    if debug:
        os.environ["STILLROOM_DEBUG"] = "1"


@app.command(epilog="Example: stillroom compress --recipe smoke --set prune.ffn_keep=0.5")
def compress(
    recipe: Recipe = None,
    overrides: Overrides = None,
    workspace: Annotated[
        str | None, typer.Option(metavar="DIR", help="Run in this folder, not in the checkout.")
    ] = None,
    promote: Annotated[
        bool, typer.Option("--promote", help="Make what passes the gate champion.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the chain: teacher and data in, a gated bundle out, registered as challenger."""
    from flows.compress import run

    code = run(
        recipe=recipe,
        overrides=list(overrides or ()),
        workspace=workspace,
        promote=promote,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command(epilog="Example: stillroom ablate --recipe smoke --technique int8 --dry-run")
def ablate(
    recipe: Recipe = None,
    overrides: Overrides = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Students of each variant; intervals need 2.")
    ] = 1,
    technique: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this one; may be repeated. none: none at all."),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="Quality on validation or test; choose on the first")
    ] = "validation",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For the report; var/ablations/… by default."),
    ] = None,
    write: Page = None,
    as_json: Json = False,
) -> None:
    """Switch one technique off at a time: what is each worth in accuracy, bytes and time?

    Every variant runs the whole chain in a workspace of its own, so it opens test, too, and
    MLflow counts that under ablation-MODEL; stages that variants share are run once. The same
    command goes on where it was cut off. Nothing is promoted; what passes is registered under
    that name.
    """
    from flows.ablate import run

    code = run(
        recipe=recipe,
        overrides=list(overrides or ()),
        seeds=seeds,
        techniques=list(technique or ()),
        split=split,
        dry_run=dry_run,
        as_json=as_json,
        out=out,
        write=write,
    )
    raise typer.Exit(code)


@app.command(epilog="Example: stillroom promote --model banking77 --version 3")
def promote(
    version: Annotated[
        int | None, typer.Option(metavar="N", help="This version; the challenger by default.")
    ] = None,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes",
            help="With --version: bring back a withdrawn one, or take one of other labels.",
        ),
    ] = False,
    max_slowdown: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, max=1000, help="In place of its own limit; 0: none."),
    ] = None,
    why: Annotated[str, typer.Option(metavar="TEXT", help="For the log.")] = "",
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Make the challenger champion: what serving answers with from now on.

    It is timed beside the champion first. Exit 3 where it takes more than
    promotion.max_slowdown times as long; that limit was registered with it.
    """
    name, why = _model(model), utf8(why, "--why")
    move = _registry().promote(name, version=version, yes=yes, max_slowdown=max_slowdown, why=why)
    _tell(move.as_dict(), move.note, as_json)
    if move.pace is not None:  # timed here just now, and so read already
        _warn_of_profile(name, move.target, str(move.pace["profile"]))


@app.command(epilog="Example: stillroom rollback --reason 'wrong answers since noon'")
def rollback(
    reason: Annotated[str, typer.Option(metavar="TEXT", help="For the log.")],
    to: Annotated[
        int | None, typer.Option(metavar="N", help="This earlier champion; the latest by default.")
    ] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Make the champion before this one champion again, and withdraw this one."""
    move = _registry().rollback(_model(model), reason=utf8(reason, "--reason"), to=to)
    _tell(move.as_dict(), move.note, as_json)


@app.command(epilog="Example: stillroom status --history")
def status(
    history: Annotated[
        bool, typer.Option("--history", help="Also every move of the champion.")
    ] = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Say which version is champion, which was before, and which waits."""
    found = _registry().status(_model(model), history=history)
    from tasks.release.history import spoken

    _tell(found, spoken(found), as_json)


@app.command(epilog="Example: stillroom predict 'where is my card?'")
def predict(
    text: Annotated[str, typer.Argument(help="What to classify; -: what stdin has.")],
    version: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=LAST, help="This version; the champion by default."),
    ] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Classify a text with the champion."""
    from tasks.release.champion import champion_bundle
    from tasks.release.servable import Servable

    text = utf8(sys.stdin.read().strip() if text == "-" else text, "TEXT")
    name = _model(model)
    folder, number = champion_bundle(name, version)
    servable = Servable(folder)
    _warn_of_profile(name, number, str(servable.serving.get("profile")))
    (answer,) = servable.predict([text])
    facts = {"model": name, "version": number, "label": answer.label, "score": answer.score}
    _tell(facts, f"{answer.label}  {answer.score:.3f}", as_json)


@app.command(epilog="Example: stillroom report --workspace var/workspaces/smoke-1a2b3c4d")
def report(
    workspace: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of this workspace, not of the checkout.")
    ] = None,
    write: Page = None,
    html: Annotated[
        bool, typer.Option("--html", help="Print only where the page with the pictures is.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the table of the last run: teacher, linear model, every stage, the bundle."""
    file = (workspace or _root()) / "reports" / "summary.json"
    if not file.is_file():
        raise UnavailableError(
            f"{file}: found no report, expected one of a finished run",
            next_command="stillroom compress",
        )
    page = file.with_name("index.html").resolve()
    if html:
        if not page.is_file():
            raise UnavailableError(
                f"{page}: found no page, expected one beside summary.json",
                next_command="dvc checkout reports/index.html, or dvc repro validate",
            )
        _tell({"page": str(page)}, str(page), as_json)
        return
    try:
        summary = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UnavailableError(
            f"{file}: found what is no report ({error}), expected that of a finished run",
            next_command="dvc checkout reports/summary.json, or dvc repro validate",
        ) from error
    if write is not None:
        from tasks.evaluation.readme import write_result

        changed = write_result(write, summary)
        _tell({"page": str(write), "changed": changed}, f"{write}: written", as_json)
        return
    if as_json:
        _tell(summary, "", as_json)
        return
    from rich.console import Console

    from tasks.evaluation.report import render_terminal

    wide = None if sys.stdout.isatty() else 140  # a pipe has no width: cut nothing off
    Console(width=wide).print(render_terminal(summary))
    if sys.stdout.isatty() and page.is_file():
        print(page)


@app.command("compare-peers", epilog="Example: stillroom compare-peers --peer onnxruntime-int8")
def compare_peers(
    recipe: Recipe = None,
    workspace: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A finished run; the recipe's or the checkout otherwise."),
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="test or validation.")] = "test",
    write: Page = None,
    as_json: Json = False,
) -> None:
    """The same teacher through other tools: accuracy, bytes, p50 and throughput beside ours.

    Peers whose packages do not go with ours get an environment of their own on first use.
    """
    from flows.compare_peers import run

    place = workspace or (None if recipe else _root())
    wanted = list(peer or ())
    raise typer.Exit(
        run(place, recipe=recipe, peers=wanted, split=split, write=write, as_json=as_json)
    )


@app.command(epilog="Example: stillroom doctor --json")
def doctor(as_json: Json = False) -> None:
    """Say what this machine can do and what is missing; exit 5 if the main job could not run."""
    from flows import doctor as examination
    from flows.machine import look
    from tasks.params import load

    root = _root()
    findings = examination.judge(look(root), load(root / "params.yaml"))
    facts = examination.report(findings)
    if as_json:
        _tell(facts, "", as_json)
    else:
        for finding in findings:
            colour = {"ok": "green", "note": "yellow", "problem": "red"}[finding.level]
            mark = typer.style(f"{finding.level:<8}", fg=colour)
            typer.echo(f"{mark} {finding.check:<9} {finding.found}")
            if finding.remedy:
                typer.echo(f"{'':<19}next: {finding.remedy}")
    raise typer.Exit(0 if facts["ok"] else UnavailableError.exit_code)


def _registry() -> ModuleType:
    """The registry's moves. Looking for garbage would take a third of their two seconds."""
    gc.disable()
    from tasks.release import registry

    return registry


def _root() -> Path:
    """The workspace that a command is about: here if this is one, else the checkout."""
    ours = all(Path(name).exists() for name in ("params.yaml", "dvc.yaml", "tasks/params.py"))
    return Path() if ours else CHECKOUT


def _model(given: str | None) -> str:
    """The registered model's name: as given, else as params.yaml has it."""
    if given == "":
        raise UsageError("--model: found nothing, expected a name", next_command="stillroom status")
    if given is not None:
        return given
    from tasks.params import load
    from tasks.release.naming import model_name

    return model_name(load(_root() / "params.yaml"))


def _tell(facts: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Facts as one JSON object, or a text for people."""
    print(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else text, flush=True)


def _say(text: str, *, colour: str | None) -> None:
    """A line on stderr, coloured on a terminal only."""
    typer.secho(text, fg=colour, err=True)


def _warn_of_profile(name: str, version: int | None, profile: str) -> None:
    """Where a bundle was built and gated for another kind of machine than this one."""
    from tasks.release.foreign import foreign

    if warning := foreign(profile):
        _say(f"{name} version {version}: {warning}", colour="yellow")


if __name__ == "__main__":
    main()
