"""The scheduled run: a clean clone, the data, the chain, and a branch with what came of it.

    prefect deployment run retrain/weekly
    python -m flows.retrain                     # the same, now

It works on what is committed, never on somebody's half-done change. What it adds
to git is a branch ``retrain/<date>`` with ``params.yaml``, ``dvc.lock``, metrics
and reports, pushed to the checkout's own repository; merging it is for people.
"""
# ruff: noqa: E402

from __future__ import annotations

import configparser
import contextlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from flows.console import Progress, load_offline_env

load_offline_env()  # prefect reads its environment at import

from prefect import flow

from flows import dvc
from flows.compress import execute, opened
from flows.workspace import Workspace, dvc_local_config, resolved_params, typed, write_changed
from tasks import home
from tasks.errors import StillroomError, UnavailableError
from tasks.params import read_yaml

RECORDED = ("params.yaml", "dvc.lock", "metrics", "reports")
AUTHOR = ("-c", "user.name=stillroom", "-c", "user.email=stillroom@localhost")


@flow(name="retrain", persist_result=False)
def retrain(
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    promotion: Literal["never", "if_passed"] = "if_passed",
) -> dict[str, Any]:
    """Run the chain on the committed state, and keep what came of it.

    Args:
        recipe: of ``infra/recipes``.
        overrides: ``section.key=value``.
        promotion: whether what passes becomes champion; else it stays challenger.

    Returns:
        The outcome of `flows.compress.compress`, with the ``branch``, None where
        nothing differs from what was committed.

    Raises:
        GateRefused: no branch is made, and nothing is registered unless the gate passed and the
            promotion was refused for speed; that version stays challenger.
        UnavailableError: git or the DVC remote fails.
    """
    now = datetime.now(UTC)
    clear_abandoned()
    clone = home.home() / "workspaces" / f"retrain-{now:%Y%m%dT%H%M%S}"
    git(home.CHECKOUT, "clone", "--quiet", "--local", str(home.CHECKOUT), str(clone))
    remote = has_remote(home.CHECKOUT)
    write_changed(clone / ".dvc" / "config.local", dvc_local_config(home.CHECKOUT, no_scm=False))
    workspace = in_clone(clone, recipe, overrides)
    if remote:
        call_dvc(clone, "pull", "--run-cache", "--allow-missing")
    with opened(workspace, Progress()) as pipeline:
        outcome = execute(pipeline, promote=promotion == "if_passed")
    if remote:
        call_dvc(clone, "push", "--run-cache")
    branch = commit(clone, f"retrain/{now:%Y-%m-%d-%H%M%S}", outcome)
    shutil.rmtree(clone)  # its files are links into the cache, its commit is in the checkout
    return {**outcome, "branch": branch}


def clear_abandoned() -> None:
    """Remove clones that failed runs have left for a look, as far as nobody is at work in them."""
    for clone in (home.home() / "workspaces").glob("retrain-*"):
        with contextlib.suppress(UnavailableError), dvc.held(clone):
            shutil.rmtree(clone)


def in_clone(clone: Path, recipe: str | None, overrides: Sequence[str]) -> Workspace:
    """The clone as the place of a run, with the committed params unless more was asked."""
    content, params = resolved_params(clone, recipe, overrides)
    if content != typed(read_yaml(clone / "params.yaml"), params.model_dump(mode="json")):
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_changed(clone / "params.yaml", text)
    return Workspace(clone, params, clone.name, content, mirror=False)


def commit(clone: Path, branch: str, outcome: dict[str, Any]) -> str | None:
    """Commit what a run wrote on a branch of its own and push that to the checkout."""
    present = [name for name in RECORDED if (clone / name).exists()]
    git(clone, "add", "--", *present)
    if not git(clone, "diff", "--cached", "--name-only"):
        return None
    message = f"Retrain: {outcome['model']} version {outcome['version']}\n\n" + "\n".join(
        f"{key}: {value}" for key, value in sorted(outcome["ratios"].items())
    )
    git(clone, "switch", "--quiet", "--create", branch)
    git(clone, *AUTHOR, "commit", "--quiet", "--no-verify", "--message", message)
    git(clone, "push", "--quiet", "origin", branch)
    return branch


def has_remote(checkout: Path) -> bool:
    """Whether DVC has a default remote to pull from and push to."""
    config = configparser.ConfigParser(interpolation=None)
    config.read([checkout / ".dvc" / "config", checkout / ".dvc" / "config.local"], "utf-8")
    return bool(config.get("core", "remote", fallback=""))


def git(root: Path, *arguments: str) -> str:
    """Run git.

    Raises:
        UnavailableError: it fails; says what it said.
    """
    cwd = root if root.exists() else None
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(
            f"git {arguments[0]} in {root}: {done.stderr.strip()}", next_command="git status"
        )
    return done.stdout.strip()


def call_dvc(root: Path, *arguments: str) -> None:
    """Run a DVC command to its end, in a process group that ends with this run.

    Raises:
        UnavailableError: it fails.
    """
    command = [sys.executable, "-m", "dvc", *arguments]
    with dvc.process_group(command, cwd=root, env=dvc.environment()) as process:
        assert process.stdout is not None
        said = process.stdout.read().strip().splitlines()
        if process.wait():
            raise UnavailableError(
                f"dvc {' '.join(arguments)} in {root}: {' '.join(said[-2:])}",
                next_command="dvc remote list",
            )


if __name__ == "__main__":
    try:
        print(retrain())
    except StillroomError as problem:
        print(problem, file=sys.stderr)
        sys.exit(problem.exit_code)
