"""The registry: which bundle is live, how that changes, and what is remembered of it.

    register(bundle, name=..., ...)      an MLflow version, once per artifact hash
    promote(name)                        challenger -> champion
    rollback(name, reason=...)           champion -> the one before, and withdraw it
    status(name)                         who is what

One file lock on a host. One commit point: the upsert of the alias `champion`. Before
it an intent is recorded, after it the intent is closed; every call first finishes, or
voids, what an earlier one left open, and repairs the derived aliases `previous` and
`challenger`. Needs no Prefect and no torch.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import IntegrityError, UsageError
from tasks.files import file_sha256
from tasks.home import tracking_uri
from tasks.release import journal, packaging, store
from tasks.release.champion import (
    ARTIFACT_TAG,
    CHAMPION,
    MANIFEST_TAG,
    Located,
    sqlite_path,
    verify,
)
from tasks.release.history import (
    PROMOTE,
    ROLLBACK,
    Move,
    Registered,
    Snapshot,
    Version,
    describe,
    fallbacks,
    to_promote,
    to_restore,
    unmoved,
)
from tasks.release.naming import check_name

if TYPE_CHECKING:
    from mlflow.tracking.client import MlflowClient


def register(
    bundle: Path,
    *,
    name: str,
    documents: Mapping[str, Path],
    release: Mapping[str, Any],
    run_id: str | None,
) -> Registered:
    """Make a version of a bundle, unless its bytes are one already.

    Args:
        bundle: servable files, ``manifest.json`` and ``MODEL_CARD.md``.
        name: the registered model.
        documents: files kept with the version, by the name that they get there.
        release: what is true of this build only (commit, machine, speed): ``release.json``.
        run_id: the MLflow run that it came from.

    Raises:
        UsageError: there is no bundle.
        UnavailableError: a document is missing.
        GateRefused: its manifest holds no passing verdict.
        IntegrityError: its files are not those of the manifest, or of the verdict.
    """
    manifest = packaging.admissible(bundle)
    packaging.check_documents(documents)
    digest = manifest[ARTIFACT_TAG]
    with store.session(name) as client:
        state = _recover(client, name)
        newest = 0 if state.newest is None else state.newest.registration
        known = _same_bytes(client, name, state, digest)
        if known is None:
            number = store.log_version(
                client,
                name,
                bundle,
                documents=documents,
                release=release,
                run_id=run_id,
                tags={
                    ARTIFACT_TAG: digest,
                    MANIFEST_TAG: file_sha256(bundle / "manifest.json"),
                    journal.REGISTRATION: str(newest + 1),
                },
            )
        else:
            number = known.number
            if known.registration < newest:
                key = journal.REGISTRATION
                client.set_model_version_tag(name, str(number), key, str(newest + 1))
        journal.repair_aliases(client, name, _read(client, name))
    return Registered(
        version=number,
        created=known is None,
        artifact_sha256=digest,
        withdrawn=known is not None and known.withdrawn_at is not None,
    )


def promote(
    name: str,
    *,
    version: int | None = None,
    yes: bool = False,
    who: str | None = None,
    why: str | None = None,
) -> Move:
    """Make a version the champion: the challenger, or the one that is named.

    The verdict is read from the version; every file is hashed and one request answered
    before anything moves. Promoting the champion changes nothing, and so does a promotion
    of the newest version when that is withdrawn.

    Args:
        name: the registered model.
        version: which one; the challenger when not given.
        yes: bring a withdrawn version back; it has to be named.
        who: for the log; the account that runs this when not given.
        why: for the log.

    Raises:
        UsageError: no challenger, no such version, or a withdrawn one without `yes`.
        GateRefused: the version holds no passing verdict.
        IntegrityError: a file differs from what was registered, or does not answer.
    """
    with store.session(name) as client:
        state = _recover(client, name)
        target = to_promote(state, name, version=version, yes=yes)
        if target is None or target == state.champion:
            when = journal.iso(journal.now())
            return unmoved(state, name, target, when=when, who=who or _account(), why=why or "")
        found = store.located(client, name, state.versions[target])
        manifest = verify(found, name=name, next_command="stillroom compress --promote")
        packaging.check_verdict(manifest)
        packaging.smoke(found.folder)
        return _move(client, name, state, kind=PROMOTE, target=target, who=who, why=why or "")


def rollback(name: str, *, reason: str, to: int | None = None, who: str | None = None) -> Move:
    """Make the champion before this one champion again, and withdraw this one.

    Args:
        name: the registered model.
        reason: for the log and for the tag of the withdrawn version.
        to: another earlier champion.
        who: for the log; the account that runs this when not given.

    Raises:
        UsageError: no reason, no champion, or nothing left to go back to.
        IntegrityError: a file of the target differs from what was registered; nothing moves.
    """
    if not reason.strip():
        raise UsageError(
            "--reason: found nothing, expected a few words for the log",
            next_command="stillroom rollback --reason 'wrong answers since noon'",
        )
    with store.session(name) as client:
        state = _recover(client, name)
        target = to_restore(state, name, to)
        further = [number for number in fallbacks(state) if number != target]
        way_out = (
            f"stillroom rollback --model {name} --reason '{reason}' --to {further[0]}"
            if further
            else f"stillroom status --model {name} --history"
        )
        found = store.located(client, name, state.versions[target])
        verify(found, name=name, next_command=way_out)
        return _move(client, name, state, kind=ROLLBACK, target=target, who=who, why=reason)


def status(name: str, history: bool = False) -> dict[str, Any]:
    """Champion, previous and challenger of a model; with `history` the log, oldest first.

    It does not wait long for another command: what is open is then reported as it stands.
    """
    file = sqlite_path(tracking_uri())
    if file is not None and not file.is_file():
        return describe(check_name(name), Snapshot(None, {}, {}, ()), moves=history)
    try:
        with store.session(name, patience_s=5) as client:
            return describe(name, _recover(client, name), moves=history)
    except store.Busy:
        with store.store_errors():
            return describe(name, _read(store.open_client(), name), moves=history)


def located(name: str, version: int | None) -> Located | None:
    """A version's bundle, or the champion's, through MLflow itself; fetched if it is elsewhere."""
    with store.store_errors():
        client = store.open_client()
        state = _read(client, name)
        number = state.champion if version is None else version
        found = None if number is None else state.versions.get(number)
        return None if found is None else store.located(client, name, found)


# --- one move --------------------------------------------------------------------------


def _move(
    client: MlflowClient,
    name: str,
    state: Snapshot,
    *,
    kind: str,
    target: int,
    who: str | None,
    why: str,
) -> Move:
    """Intent, commit, close. A crash between any two of them is recovered by the next call."""
    intent = journal.record(
        client,
        name,
        state,
        experiment_id=store.experiment(client),
        kind=kind,
        source=state.champion,
        target=target,
        who=who or _account(),
        why=why,
    )
    client.set_registered_model_alias(name, CHAMPION, str(target))
    journal.complete(client, name, intent)
    journal.repair_aliases(client, name, _read(client, name))
    left = "" if state.champion is None else f" (was {state.champion})"
    if kind == ROLLBACK:
        left = f" again; version {state.champion} is withdrawn: {why}"
    return Move(
        model=name,
        kind=kind,
        source=state.champion,
        target=target,
        when=intent.when,
        who=intent.who,
        why=why,
        artifact_sha256=intent.artifact_sha256,
        note=f"{name}: version {target} is champion{left}",
    )


def _same_bytes(client: MlflowClient, name: str, state: Snapshot, digest: str) -> Version | None:
    """The version that holds these bytes: the withdrawn one first, a damaged one never."""
    same = [v for v in state.versions.values() if v.artifact_sha256 == digest]
    for version in sorted(same, key=lambda v: (v.withdrawn_at is None, -v.number)):
        try:
            if version.withdrawn_at is None:
                verify(store.located(client, name, version), name=name)
        except IntegrityError:
            continue
        return version
    return None


def _read(client: MlflowClient, name: str) -> Snapshot:
    return journal.read(client, name, store.experiment(client))


def _recover(client: MlflowClient, name: str) -> Snapshot:
    return journal.recover(client, name, store.experiment(client))


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
