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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import IntegrityError, UnavailableError, UsageError
from tasks.files import file_sha256
from tasks.release import journal, pace, packaging
from tasks.release import registry_store as store
from tasks.release.champion import (
    ARTIFACT_TAG,
    CHAMPION,
    MANIFEST_TAG,
    Located,
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
    skipped,
    to_promote,
    to_restore,
    unmoved,
)
from tasks.release.naming import check_name

if TYPE_CHECKING:
    from mlflow.tracking.client import MlflowClient


ANEW = "stillroom compress --promote"
"""Registers the same bytes anew."""
TRIES = 5
"""Comparisons of a promotion whose champion others move meanwhile."""


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
        release: what is true of this build only (commit, machine, speed, limit at promotion):
            ``release.json``. Of bytes that are a version already only the limit is kept.
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
    limit = pace.limit_of(release)
    with store.session(name) as client:
        state = _recover(client, name)
        newest = 0 if state.newest is None else state.newest.registration
        known, withdrawn = _same_bytes(client, name, state, digest)
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
                    **({} if limit is None else {journal.MAX_SLOWDOWN: limit}),
                    **({} if withdrawn is None else journal.withdrawal_of(withdrawn)),
                },
            )
        else:
            number = known.number
            if known.registration < newest:
                key = journal.REGISTRATION
                client.set_model_version_tag(name, str(number), key, str(newest + 1))
            if limit is not None and limit != known.max_slowdown:
                client.set_model_version_tag(name, str(number), journal.MAX_SLOWDOWN, limit)
        journal.repair_aliases(client, name, _read(client, name))
    return Registered(
        version=number,
        created=known is None,
        artifact_sha256=digest,
        withdrawn=withdrawn is not None,
    )


def promote(
    name: str,
    *,
    version: int | None = None,
    yes: bool = False,
    max_slowdown: float | None = None,
    who: str | None = None,
    why: str | None = None,
) -> Move:
    """Make a version the champion: the challenger, or the one that is named.

    Verdict and limits are read from the version; every file is hashed, one request answered
    and the speed compared with the champion's on this host before anything moves. That takes
    about two seconds, during which the lock is free: if the champion changes meanwhile, it is
    compared with the new one. Promoting the champion changes nothing, and so does a promotion
    of the newest version when that is withdrawn.

    Args:
        name: the registered model.
        version: which one; the challenger when not given.
        yes: bring a withdrawn version back, or let another data set's classifier take the
            champion's place; it has to be named.
        max_slowdown: times the champion's time, in place of the version's own limit; 0: none.
        who: for the log; the account that runs this when not given.
        why: for the log.

    Raises:
        UsageError: nothing is registered, no such version, or, without `yes`, a withdrawn one or
            one that has none of the champion's labels.
        GateRefused: the version holds no passing verdict, or is slower than its limit allows.
        IntegrityError: a file differs from what was registered, or does not answer.
        UnavailableError: the champion changed each time that it was compared with.
    """
    who, why = who or _account(), why or ""
    require_store(name)
    for _ in range(TRIES):
        with store.session(name) as client:
            state = _recover(client, name)
            target = to_promote(state, name, version=version, yes=yes)
            if target is None or target == state.champion:
                when = journal.iso(journal.now())
                return unmoved(state, name, target, when=when, who=who, why=why)
            contest = _contest(client, name, state, target, max_slowdown)
        if not yes and contest.champion is not None:
            packaging.check_kin(contest.candidate.folder, contest.champion.folder,
                                name=name, version=target)  # fmt: skip
        judged = _measured(name, contest)
        judged.require(name, target, yes=contest.withdrawn)
        version = target
        with store.session(name) as client:
            state = _recover(client, name)
            to_promote(state, name, version=version, yes=yes)  # refuses what was withdrawn since
            if state.champion == contest.against:
                verify(contest.candidate, name=name, next_command=ANEW)
                return _move(
                    client, name, state, kind=PROMOTE, target=target, who=who, why=why,
                    judged=judged,
                )  # fmt: skip
    raise store.Busy(
        f"{name}: found another champion after each of {TRIES} comparisons, expected one to stay",
        next_command=f"stillroom status --model {name} --history",
    )


def rollback(name: str, *, reason: str, to: int | None = None, who: str | None = None) -> Move:
    """Make the champion before this one champion again, and withdraw this one.

    Args:
        name: the registered model.
        reason: for the log and for the tags of what is withdrawn.
        to: another earlier champion; those between are withdrawn, too.
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
    require_store(name)
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
        return _move(
            client, name, state, kind=ROLLBACK, target=target, who=who, why=reason,
            passed_over=skipped(state, target),
        )  # fmt: skip


def status(name: str, history: bool = False) -> dict[str, Any]:
    """Champion, previous and challenger of a model; with `history` the log, oldest first.

    It does not wait long for another command: what is open is then reported as it stands.
    """
    if (file := store.absent()) is not None:
        return describe(check_name(name), Snapshot(None, {}, {}, (), str(file)), moves=history)
    try:
        with store.session(name, patience_s=5) as client:
            return describe(name, _recover(client, name), moves=history)
    except store.Busy:
        with store.store_errors():
            return describe(name, _read(store.open_client(), name), moves=history)


def require_store(name: str) -> None:
    """Make none on the way to a move: where there is none, nothing is registered.

    Raises:
        UsageError: there is none.
    """
    if (file := store.absent()) is not None:
        raise UsageError(
            f"{name}: found no registry at {file}, expected that of STILLROOM_HOME",
            next_command="stillroom compress --promote",
        )


def located(name: str, version: int | None) -> Located | None:
    """A version's bundle, or the champion's, through MLflow itself; fetched if it is elsewhere."""
    with store.store_errors():
        client = store.open_client()
        state = _read(client, name)
        number = state.champion if version is None else version
        found = None if number is None else state.versions.get(number)
        return None if found is None else store.located(client, name, found)


# --- one move --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Contest:
    """Who is compared with whom in a promotion, and what the candidate is held to."""

    target: int
    candidate: Located
    withdrawn: bool
    against: int | None
    """The champion when this began."""
    champion: Located | None
    """Its bundle; None where there is none that is whole."""
    limit: float | None


def _contest(
    client: MlflowClient, name: str, state: Snapshot, target: int, max_slowdown: float | None
) -> _Contest:
    """Find both bundles, and the limit: as given, else as the version has it."""
    version = state.versions[target]
    limit = pace.recorded_limit(version.max_slowdown) if max_slowdown is None else max_slowdown
    holder = None if state.champion is None else state.versions.get(state.champion)
    champion = None
    if holder is not None:
        # a damaged champion is what a promotion may be the cure of
        with suppress(IntegrityError, UnavailableError), store.store_errors():
            found = store.located(client, name, holder)
            verify(found, name=name)
            champion = found
    return _Contest(
        target=target,
        candidate=store.located(client, name, version),
        withdrawn=state.withdrawn(target),
        against=state.champion,
        champion=champion,
        limit=limit,
    )


def _measured(name: str, contest: _Contest) -> pace.Judged:
    """Check a candidate's files, verdict and answer, then its speed beside the champion's."""
    folder = contest.candidate.folder
    packaging.check_verdict(verify(contest.candidate, name=name, next_command=ANEW))
    packaging.smoke(folder)
    reference = None if contest.champion is None else contest.champion.folder
    found = pace.compare(folder, reference)
    return pace.judge(found, against=contest.against, limit=contest.limit)


def _move(
    client: MlflowClient,
    name: str,
    state: Snapshot,
    *,
    kind: str,
    target: int,
    who: str | None,
    why: str,
    judged: pace.Judged | None = None,
    passed_over: Sequence[int] = (),
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
        pace=None if judged is None else judged.as_dict(),
        skipped=passed_over,
    )
    client.set_registered_model_alias(name, CHAMPION, str(target))
    journal.complete(client, name, intent)
    journal.repair_aliases(client, name, _read(client, name))
    left = "" if state.champion is None else f" (was {state.champion})"
    if kind == ROLLBACK:
        gone = ", ".join(map(str, (state.champion, *passed_over)))
        many = "s {} are" if passed_over else " {} is"
        left = f" again; version{many.format(gone)} withdrawn: {why}"
    spoken = "" if judged is None else f"; {judged.sentence()}"
    return Move(
        model=name,
        kind=kind,
        source=state.champion,
        target=target,
        when=intent.when,
        who=intent.who,
        why=why,
        artifact_sha256=intent.artifact_sha256,
        note=f"{name}: version {target} is champion{left}" + spoken,
        pace=intent.pace,
    )


def _same_bytes(
    client: MlflowClient, name: str, state: Snapshot, digest: str
) -> tuple[Version | None, Version | None]:
    """The sound version that holds these bytes, and the withdrawn one of which they are.

    A withdrawal is of the bytes: where their only version is damaged, those that are made anew
    are withdrawn, too, until somebody brings them back.
    """
    same = [v for v in state.versions.values() if v.artifact_sha256 == digest]
    same.sort(key=lambda v: (v.withdrawn_at is None, -v.number))
    for version in same:
        try:
            verify(store.located(client, name, version), name=name)
        except IntegrityError:
            continue
        return version, version if version.withdrawn_at else None
    return None, next((v for v in same if v.withdrawn_at), None)


def _read(client: MlflowClient, name: str) -> Snapshot:
    return journal.read(client, name, store.experiment(client))


def _recover(client: MlflowClient, name: str) -> Snapshot:
    return journal.recover(client, name, store.experiment(client))


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
