"""The registry's place in MLflow: opened under one lock, its errors told, a version logged.

The half of `tasks.release.registry` that imports mlflow; what moves, and why, is decided there.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tasks.errors import UnavailableError
from tasks.home import home, tracking_uri
from tasks.release import packaging
from tasks.release.champion import BUNDLE, Located, local_path, sqlite_path
from tasks.release.history import Version
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


class Busy(UnavailableError):
    """Another command holds the lock."""


@contextmanager
def session(name: str, *, patience_s: float = LOCK_SECONDS) -> Iterator[MlflowClient]:
    """The store, with this host's lock on the registry held.

    Args:
        name: the registered model.
        patience_s: how long to wait for the lock, in seconds.

    Raises:
        Busy: another command held it all that time.
        UnavailableError: MLflow or its database does not answer.
    """
    check_name(name)
    with store_errors():
        client = open_client()
        lock = home() / "locks" / "registry.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=patience_s):
                yield client
        except Timeout:
            raise Busy(
                f"{lock}: held by another command for {patience_s:.0f} s, expected it free",
                next_command=f"stillroom status --model {name}",
            ) from None


@contextmanager
def store_errors() -> Iterator[None]:
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
            next_command="stillroom doctor"
            if tracking_uri().startswith("sqlite")
            else "make up, or unset MLFLOW_TRACKING_URI",
        ) from error


def absent() -> Path | None:
    """The file of a store that nobody has made yet; None where there is one."""
    file = sqlite_path(tracking_uri())
    return None if file is None or file.is_file() else file


def open_client() -> MlflowClient:
    """A client of the store that `tasks.home` names; a sqlite file gets its folder."""
    from mlflow.tracking.client import MlflowClient

    uri = tracking_uri()
    store = sqlite_path(uri)
    if store is not None:
        store.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment(client: MlflowClient) -> str:
    """The experiment that holds the log, created where it is missing."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    local = sqlite_path(tracking_uri()) is not None
    folder = home() / "mlflow" / "artifacts" / EXPERIMENT
    return client.create_experiment(EXPERIMENT, folder.as_uri() if local else None)


def located(client: MlflowClient, name: str, version: Version) -> Located:
    """A version's bundle on this host; fetched once if the store is elsewhere."""
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


def log_version(
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
    place = client.get_run(run_id).info.experiment_id if run_id else experiment(client)
    logged = client.create_logged_model(
        place, name=name, source_run_id=run_id, tags=dict(tags), model_type="classifier"
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
