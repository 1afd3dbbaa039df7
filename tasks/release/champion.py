"""Which bundle is live, and where it lies: read in milliseconds, without MLflow.

    folder, version = champion_bundle("banking77")

Importing MLflow takes longer than answering, so its sqlite file is read directly
(read-only, always the current state); any other store is asked through MLflow.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from tasks.errors import IntegrityError, StillroomError, UsageError
from tasks.files import file_sha256
from tasks.home import tracking_uri
from tasks.release.servable import SERVING_FILES, artifact_sha256

CHAMPION = "champion"
ARTIFACT_TAG = "artifact_sha256"
MANIFEST_TAG = "manifest_sha256"
BUNDLE = Path("artifacts/bundle")
"""The bundle inside a logged model."""
SQLITE = "sqlite:///"

VERSION_QUERY = """
SELECT v.version, v.storage_location, v.source,
       (SELECT m.artifact_location FROM logged_models m WHERE 'models:/' || m.model_id = v.source)
FROM model_versions v
WHERE v.name = :name AND v.current_stage IS NOT 'Deleted_Internal'
  AND v.version = coalesce(
        :version,
        (SELECT version FROM registered_model_aliases WHERE name = :name AND alias = :alias))
"""
TAG_QUERY = "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?"


@dataclass(frozen=True)
class Located:
    """A version's bundle on this host and the hashes that the registry has of it."""

    version: int
    folder: Path
    artifact_sha256: str
    manifest_sha256: str


def champion_bundle(name: str, version: int | None = None) -> tuple[Path, int]:
    """The folder of the champion's bundle, or of another version's, and its number.

    Raises:
        UsageError: there is no such version, or no champion.
        IntegrityError: a file differs from what was registered.
    """
    found = _locate(name, version)
    if found is None:
        missing = "champion" if version is None else f"version {version}"
        raise UsageError(
            f"{name}: found no {missing}, expected one in {tracking_uri()}",
            next_command=_way_out(name, version),
        )
    verify(found, name=name)
    return found.folder, found.version


def verify(found: Located, *, name: str, next_command: str | None = None) -> dict[str, Any]:
    """Compare every file of a registered bundle with its recorded hash.

    Args:
        found: the bundle and what the registry has of it.
        name: the registered model.
        next_command: what to type when a file differs; a rollback when not given.

    Returns:
        The manifest.

    Raises:
        IntegrityError: names the file, what was found and what was recorded.
    """
    command = next_command or f"stillroom rollback --model {name} --reason 'bundle is damaged'"
    where = f"{name} version {found.version}"
    manifest_file = found.folder / "manifest.json"
    _expect(manifest_file, found.manifest_sha256, where, command)
    manifest: dict[str, Any] = json.loads(manifest_file.read_text("utf-8"))
    for file in sorted({*SERVING_FILES, *manifest["files"]}):
        _expect(found.folder / file, str(manifest["files"].get(file)), where, command)
    together = artifact_sha256(manifest["files"])
    if together != found.artifact_sha256:
        raise _differs(found.folder, together, found.artifact_sha256, where, command)
    return manifest


def local_path(uri: str) -> Path | None:
    """The folder that an artifact location means, if it is on this host."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme else None


def sqlite_path(uri: str) -> Path | None:
    """The file behind a ``sqlite:///`` address, if it is one."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def _locate(name: str, version: int | None) -> Located | None:
    store = sqlite_path(tracking_uri())
    if store is not None:
        if not store.is_file():
            return None
        try:
            found = _read(store, name, version)
        except sqlite3.Error:
            pass  # mid-recovery, or another schema: MLflow itself will know
        else:
            if found is None or found.folder.is_absolute():
                return found
    from tasks.release.registry import located

    return located(name, version)


def _way_out(name: str, version: int | None) -> str:
    """What to type where there is no such version, or nothing has been promoted yet."""
    if version is not None:
        return f"stillroom status --model {name} --history"
    from tasks.release.registry import status

    with suppress(StillroomError):
        if status(name)["challenger"]:
            return f"stillroom promote --model {name}"
    return "stillroom compress --promote"


def _read(store: Path, name: str, version: int | None) -> Located | None:
    address = f"file:{quote(str(store.absolute()))}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=5)) as db:
        wanted = {"name": name, "version": version, "alias": CHAMPION}
        row = db.execute(VERSION_QUERY, wanted).fetchone()
        if row is None:
            return None
        number, storage, source, logged = row
        tags = dict(db.execute(TAG_QUERY, (name, number)).fetchall())
    folder = local_path(logged or storage or source)
    return Located(
        version=int(number),
        folder=Path() if folder is None else folder / BUNDLE,
        artifact_sha256=tags.get(ARTIFACT_TAG, ""),
        manifest_sha256=tags.get(MANIFEST_TAG, ""),
    )


def _expect(file: Path, recorded: str, where: str, command: str) -> None:
    found = file_sha256(file) if file.is_file() else "no file"
    if found != recorded:
        raise _differs(file, found, recorded, where, command)


def _differs(path: Path, found: str, recorded: str, where: str, command: str) -> IntegrityError:
    return IntegrityError(
        f"{where}: {path}: found sha256 {found[:16]}, expected {recorded[:16]} as registered",
        next_command=command,
    )
