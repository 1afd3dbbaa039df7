"""The promotion as a flow, so that it stands in Prefect beside the runs.

    prefect deployment run promote/promote --param version=3

The move itself is `tasks.release.registry.promote`; `stillroom promote` makes it with
no Prefect at all.
"""
# ruff: noqa: E402

from __future__ import annotations

from typing import Any

from flows.console import load_offline_env

load_offline_env()  # prefect and mlflow read their environment at import

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from tasks.home import CHECKOUT
from tasks.params import load
from tasks.release import registry
from tasks.release.naming import model_name


@flow(name="promote", retries=0)
def promote(
    model: str | None = None,
    version: int | None = None,
    yes: bool = False,
    max_slowdown: float | None = None,
    why: str = "",
) -> dict[str, Any]:
    """Make a version champion.

    Args:
        model: registered model; that of the checkout's params.yaml when not given.
        version: the challenger when not given.
        yes: bring back a withdrawn version, or take one that has none of the champion's labels.
        max_slowdown: times the champion's time, in place of the version's own limit; 0: none.
        why: for the log.
    """
    name = model or default_model()
    move = registry.promote(
        name, version=version, yes=yes, max_slowdown=max_slowdown, who=account(), why=why
    )
    report(move.as_dict())
    return move.as_dict()


def default_model() -> str:
    """The registered model of the checkout's params.yaml."""
    return model_name(load(CHECKOUT / "params.yaml"))


def account() -> str:
    """Who moves, for the log: this flow run."""
    return f"prefect: {flow_run.name or 'flow run without a server'}"


def report(move: dict[str, Any]) -> None:
    """Leave a move in Prefect as a markdown artifact."""
    facts = {k: v for k, v in move.items() if k != "pace"}
    facts.update({f"pace: {key}": value for key, value in (move["pace"] or {}).items()})
    rows = [f"| {key} | {'' if value is None else value} |" for key, value in facts.items()]
    create_markdown_artifact(
        key=f"{move['kind'] if move['changed'] else 'promote'}-{_key(move['model'])}",
        markdown="\n".join([move["note"], "", "| | |", "|---|---|", *rows]),
        description=move["note"],
    )


def _key(name: str) -> str:
    """Prefect allows lower-case letters, digits and dashes in a key."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
