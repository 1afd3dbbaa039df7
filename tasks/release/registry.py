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
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tasks.errors import IntegrityError, UnavailableError, UsageError
from tasks.files import file_sha256
from tasks.home import home, tracking_uri
from tasks.release import journal, packaging
from tasks.release.champion import (
    ARTIFACT_TAG,
    BUNDLE,
    CHAMPION,
    MANIFEST_TAG,
    Located,
    local_path,
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

EXPERIMENT = "registry"
LOCK_SECONDS = 120
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


class _Busy(UnavailableError):
    """Another command holds the lock."""


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
    with _session(name) as client:
        state = _recover(client, name)
        newest = 0 if state.newest is None else state.newest.registration
        known = _same_bytes(client, name, state, digest)
        if known is None:
            number = _log_version(
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
    with _session(name) as client:
        state = _recover(client, name)
        target = to_promote(state, name, version=version, yes=yes)
        if target is None or target == state.champion:
            when = journal.iso(journal.now())
            return unmoved(state, name, target, when=when, who=who or _account(), why=why or "")
        found = _located(client, name, state.versions[target])
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
    with _session(name) as client:
        state = _recover(client, name)
        target = to_restore(state, name, to)
        further = [number for number in fallbacks(state) if number != target]
        way_out = (
            f"stillroom rollback --model {name} --reason '{reason}' --to {further[0]}"
            if further
            else f"stillroom status --model {name} --history"
        )
        found = _located(client, name, state.versions[target])
        verify(found, name=name, next_command=way_out)
        return _move(client, name, state, kind=ROLLBACK, target=target, who=who, why=reason)


def status(name: str, history: bool = False) -> dict[str, Any]:
    """Champion, previous and challenger of a model; with `history` the log, oldest first.

    It does not wait long for another command: what is open is then reported as it stands.
    """
    store = sqlite_path(tracking_uri())
    if store is not None and not store.is_file():
        return describe(check_name(name), Snapshot(None, {}, {}, ()), moves=history)
    try:
        with _session(name, patience_s=5) as client:
            return describe(name, _recover(client, name), moves=history)
    except _Busy:
        with _store_errors():
            return describe(name, _read(_client(), name), moves=history)


def located(name: str, version: int | None) -> Located | None:
    """A version's bundle, or the champion's, through MLflow itself; fetched if it is elsewhere."""
    with _store_errors():
        client = _client()
        state = _read(client, name)
        number = state.champion if version is None else version
        found = None if number is None else state.versions.get(number)
        return None if found is None else _located(client, name, found)


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
        experiment_id=_experiment(client),
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
                verify(_located(client, name, version), name=name)
        except IntegrityError:
            continue
        return version
    return None


# --- the store -------------------------------------------------------------------------


@contextmanager
def _session(name: str, *, patience_s: float = LOCK_SECONDS) -> Iterator[MlflowClient]:
    """The store, with this host's lock on the registry held."""
    check_name(name)
    with _store_errors():
        client = _client()
        lock = home() / "locks" / "registry.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=patience_s):
                yield client
        except Timeout:
            raise _Busy(
                f"{lock}: held by another command for {patience_s:.0f} s, expected it free",
                next_command=f"stillroom status --model {name}",
            ) from None


@contextmanager
def _store_errors() -> Iterator[None]:
    """Turn what MLflow and its database raise into the project's own error."""
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UnavailableError(
            f"{tracking_uri()}: found {type(error).__name__} ({reason}), "
            "expected MLflow's store to answer",
            next_command="stillroom --debug status",
        ) from error


def _client() -> MlflowClient:
    from mlflow.tracking.client import MlflowClient

    uri = tracking_uri()
    store = sqlite_path(uri)
    if store is not None:
        store.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment(client: MlflowClient) -> str:
    """The experiment that holds the log, created where it is missing."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    local = sqlite_path(tracking_uri()) is not None
    folder = home() / "mlflow" / "artifacts" / EXPERIMENT
    return client.create_experiment(EXPERIMENT, folder.as_uri() if local else None)


def _read(client: MlflowClient, name: str) -> Snapshot:
    return journal.read(client, name, _experiment(client))


def _recover(client: MlflowClient, name: str) -> Snapshot:
    return journal.recover(client, name, _experiment(client))


def _located(client: MlflowClient, name: str, version: Version) -> Located:
    uri = client.get_model_version_download_uri(name, str(version.number))
    folder = local_path(uri)
    if folder is None:
        folder = home() / "scratch" / "registry" / name / str(version.number)
        if not (folder / BUNDLE / "manifest.json").is_file():
            from mlflow.artifacts import download_artifacts

            folder.mkdir(parents=True, exist_ok=True)
            model = f"models:/{name}/{version.number}"
            download_artifacts(model, dst_path=str(folder), tracking_uri=tracking_uri())
    return Located(
        version=version.number,
        folder=folder / BUNDLE,
        artifact_sha256=version.artifact_sha256,
        manifest_sha256=version.manifest_sha256,
    )


def _log_version(
    client: MlflowClient,
    name: str,
    bundle: Path,
    *,
    documents: Mapping[str, Path],
    release: Mapping[str, Any],
    run_id: str | None,
    tags: Mapping[str, str],
) -> int:
    """Log the bundle as an MLflow model and make a version of it; the number of that."""
    experiment = client.get_run(run_id).info.experiment_id if run_id else _experiment(client)
    logged = client.create_logged_model(
        experiment, name=name, source_run_id=run_id, tags=dict(tags), model_type="classifier"
    )
    with tempfile.TemporaryDirectory(prefix="stillroom-") as scratch:
        folder = Path(scratch) / "model"
        _save_model(folder, bundle, logged, code=packaging.lay_code(Path(scratch) / "code"))
        packaging.lay_documents(folder / "documents", documents, release)
        client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name)
    with _as_default_store():
        version = client.create_model_version(
            name,
            source=f"models:/{logged.model_id}",
            run_id=run_id,
            tags=dict(tags),
            model_id=logged.model_id,
        )
    return int(version.version)


def _save_model(folder: Path, bundle: Path, logged: Any, *, code: Path) -> None:
    """Write the folder of a model from code: loader and bundle, no pickle."""
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    staged = folder.parent / BUNDLE.name
    packaging.copy_bundle(bundle, staged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for an input example beside the signature
        mlflow.pyfunc.save_model(
            path=str(folder),
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
                run_id=logged.source_run_id,
            ),
            python_model=str(packaging.MODEL_CODE),
            artifacts={BUNDLE.name: str(staged)},
            code_paths=[str(code)],
            pip_requirements=packaging.requirements(),
            signature=ModelSignature(
                inputs=Schema([ColSpec("string")]),
                outputs=Schema([ColSpec("string", "label"), ColSpec("double", "score")]),
            ),
        )


@contextmanager
def _as_default_store() -> Iterator[None]:
    """MLflow resolves ``models:/`` sources through its global store: make that ours meanwhile."""
    import mlflow

    uri, before = tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    if mlflow.get_tracking_uri() == uri:
        yield
        return
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
