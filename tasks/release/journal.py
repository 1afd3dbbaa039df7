"""The log of a model's moves in an MLflow store, and the recovery from it.

A move is an MLflow run in the experiment `registry`: running while it is an intent,
finished when it is done, killed when it is void. Its tags say who, when, why, from
where to where, with which verdict, hash and speed. Every function here takes the client
that `tasks.release.registry_store` has opened, the only module here that knows of MLflow.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tasks.release import history
from tasks.release.champion import ARTIFACT_TAG, CHAMPION, MANIFEST_TAG
from tasks.release.history import (
    DONE,
    EXTERNAL,
    INTENT,
    PROMOTE,
    ROLLBACK,
    VOID,
    Entry,
    Snapshot,
    Version,
)

PREVIOUS, CHALLENGER = "previous", "challenger"
REGISTRATION = "registration"
MAX_SLOWDOWN = "max_slowdown"
WITHDRAWN, WITHDRAWN_REASON = "withdrawn", "withdrawn_reason"
RUN_STATES = {"RUNNING": INTENT, "FINISHED": DONE, "KILLED": VOID}

Client = Any
"""An ``MlflowClient``."""


def read(client: Client, name: str, experiment_id: str) -> Snapshot:
    """All that the store knows of a model; empty where it knows none."""
    models = client.search_registered_models(filter_string=f"name = '{name}'")
    aliases = {k: int(v) for k, v in models[0].aliases.items()} if models else {}
    versions = {
        int(found.version): _version(found)
        for found in _pages(client.search_model_versions, filter_string=f"name = '{name}'")
    }
    runs = _pages(
        client.search_runs,
        experiment_ids=[experiment_id],
        filter_string=f"tags.model = '{name}'",
        order_by=["attributes.start_time ASC"],
    )
    return Snapshot(
        champion=aliases.get(CHAMPION),
        aliases=aliases,
        versions=versions,
        moves=[_entry(run) for run in runs],
        store=str(client.tracking_uri),
    )


def record(
    client: Client,
    name: str,
    state: Snapshot,
    *,
    experiment_id: str,
    kind: str,
    source: int | None,
    target: int | None,
    who: str,
    why: str,
    pace: Mapping[str, Any] | None = None,
    skipped: Sequence[int] = (),
) -> Entry:
    """Write the intent of a move, in one transaction, later than every move before it."""
    version = None if target is None else state.versions.get(target)
    tags = {
        "model": name,
        "kind": kind,
        "who": who,
        "why": why,
        "from": _text(source),
        "to": _text(target),
        "verdict": "passed" if kind != EXTERNAL else "not asked",
        ARTIFACT_TAG: "" if version is None else version.artifact_sha256,
        "status": INTENT,
    }
    if pace is not None:
        tags["pace"] = json.dumps(pace)
    if skipped:
        tags["skipped"] = json.dumps(list(skipped))
    last = max((_milliseconds(move.when) for move in state.moves), default=0)
    run = client.create_run(
        experiment_id,
        start_time=max(now(), last + 1),
        tags=tags,
        run_name=f"{kind} {name} {_text(source) or '-'} to {_text(target) or '-'}",
    )
    return _entry(run)


def complete(client: Client, name: str, entry: Entry) -> None:
    """Do what follows from a committed move; a second time changes nothing."""
    if entry.kind == ROLLBACK and entry.source is not None:
        for left in map(str, (entry.source, *entry.skipped)):
            client.set_model_version_tag(name, left, WITHDRAWN_REASON, entry.why)
            client.set_model_version_tag(name, left, WITHDRAWN, entry.when)
    if entry.kind == PROMOTE and entry.target is not None:
        tags = client.get_model_version(name, str(entry.target)).tags
        for key in {WITHDRAWN, WITHDRAWN_REASON} & set(tags):
            client.delete_model_version_tag(name, str(entry.target), key)
    close(client, entry, DONE)


def close(client: Client, entry: Entry, outcome: str) -> None:
    """End an intent as ``done`` or ``void``."""
    client.set_tag(entry.run_id, "status", outcome)
    client.set_terminated(entry.run_id, "FINISHED" if outcome == DONE else "KILLED")


def recover(client: Client, name: str, experiment_id: str) -> Snapshot:
    """The state of a model after finishing, or voiding, what was cut off.

    A champion that the log does not explain (its alias was set by hand) gets an entry.
    """
    state = read(client, name, experiment_id)
    cut_off = [move for move in state.moves if move.state == INTENT]
    for move in cut_off:
        if move.target == state.champion:
            complete(client, name, move)
        else:
            close(client, move, VOID)
    if cut_off:
        state = read(client, name, experiment_id)
    if history.recorded(state.moves) != state.champion:
        entry = record(
            client,
            name,
            state,
            experiment_id=experiment_id,
            kind=EXTERNAL,
            source=history.recorded(state.moves),
            target=state.champion,
            who="unknown",
            why="the alias was moved by other means",
        )
        close(client, entry, DONE)
        state = read(client, name, experiment_id)
    repair_aliases(client, name, state)
    return state


def repair_aliases(client: Client, name: str, state: Snapshot) -> None:
    """Set `previous` and `challenger` to what follows from the log."""
    derived = {PREVIOUS: history.previous(state), CHALLENGER: history.challenger(state)}
    for alias, number in derived.items():
        if number == state.aliases.get(alias):
            continue
        if number is None:
            client.delete_registered_model_alias(name, alias)
        else:
            client.set_registered_model_alias(name, alias, str(number))


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def iso(milliseconds: int) -> str:
    """A time as ISO 8601, UTC, to the millisecond."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _milliseconds(when: str) -> int:
    return round(datetime.fromisoformat(when).timestamp() * 1000)


def _text(number: int | None) -> str:
    return "" if number is None else str(number)


def _entry(run: Any) -> Entry:
    tags = run.data.tags
    return Entry(
        run_id=run.info.run_id,
        kind=tags["kind"],
        source=int(tags["from"]) if tags.get("from") else None,
        target=int(tags["to"]) if tags.get("to") else None,
        when=iso(run.info.start_time),
        who=tags.get("who", ""),
        why=tags.get("why", ""),
        verdict=tags.get("verdict", ""),
        artifact_sha256=tags.get(ARTIFACT_TAG, ""),
        state=RUN_STATES.get(run.info.status, VOID),
        pace=json.loads(tags["pace"]) if tags.get("pace") else None,
        skipped=json.loads(tags.get("skipped") or "[]"),
    )


def withdrawal_of(version: Version) -> dict[str, str]:
    """The tags that say so of another version of the same bytes."""
    return {WITHDRAWN: version.withdrawn_at or "", WITHDRAWN_REASON: version.withdrawn_reason or ""}


def _version(found: Any) -> Version:
    return Version(
        number=int(found.version),
        artifact_sha256=found.tags.get(ARTIFACT_TAG, ""),
        manifest_sha256=found.tags.get(MANIFEST_TAG, ""),
        registration=int(found.tags.get(REGISTRATION, 0)),
        registered_at=iso(found.creation_timestamp),
        withdrawn_at=found.tags.get(WITHDRAWN),
        withdrawn_reason=found.tags.get(WITHDRAWN_REASON),
        max_slowdown=found.tags.get(MAX_SLOWDOWN),
    )


def _pages(search: Any, **query: Any) -> list[Any]:
    """All results of a paged search."""
    found, token = [], None
    while True:
        page = search(**query, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
