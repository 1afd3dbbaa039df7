"""What `stillroom doctor` finds on this machine, before anyone judges it: `flows.doctor`.

Nothing is installed, started or changed but two empty files, by which links are tried.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import joblib
import psutil

from flows.stack import answers
from tasks.gpu import gpu_flags, gpus
from tasks.home import home, tracking_uri
from tasks.processor import cpu_flags
from tasks.runtimes.interface import NAMES, missing

REMOTE_S = 15
ASK_REMOTE = """
import urllib.error, urllib.request
from dvc.repo import Repo
remote = Repo().cloud.get_remote_odb()
try:
    if remote.path.startswith("http"):  # whose file system takes any trouble for an absent file
        urllib.request.urlopen(remote.path, timeout=10)
    remote.fs.info(remote.path)
except FileNotFoundError:
    pass  # it answered; the first push makes the folder
except urllib.error.HTTPError as error:
    if error.code >= 500:
        raise
"""


@dataclass(frozen=True)
class Machine:
    """What was found, before anyone judges it."""

    python: tuple[int, int]
    locked: Mapping[str, str]
    installed: Mapping[str, str | None]
    flags: frozenset[str]
    cores: int
    """That this process may use."""
    memory: int
    disk: int
    gpu: str
    absent: Mapping[str, str | None]
    """Why an engine cannot run here, by its name; None where it can."""
    links: tuple[str, ...]
    """Kinds that work between the cache and the workspace."""
    locked_by: bool
    """Another process holds DVC's lock."""
    remote: str
    remote_says: str
    """What DVC's remote answered that it should not have; empty where it is well or none is set."""
    data: bool
    """Fetched files lie there already."""
    index: str
    """The package index that pip was told of; empty for its own default."""
    index_answers: bool
    mlflow: str
    mlflow_answers: bool
    prefect: str
    prefect_answers: bool
    chromium: bool


def look(root: Path) -> Machine:
    """Look at this machine and at a checkout or workspace."""
    locked = dict(
        re.findall(
            r"^([A-Za-z0-9._-]+)==([^\s\\]+)",
            (root / "infra/requirements.lock").read_text("utf-8"),
            re.M,
        )
    )
    uri, api = tracking_uri(), os.environ.get("PREFECT_API_URL", "")
    data = (root / "data/raw").is_dir()
    told = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    remote = _said(["git", "config", "-f", ".dvc/config.local", "core.remote"], root) or _said(
        ["git", "config", "-f", ".dvc/config", "core.remote"], root
    )
    index = os.environ.get("PIP_INDEX_URL") or ("" if data else _said(told, root))
    return Machine(
        python=(int(platform.python_version_tuple()[0]), int(platform.python_version_tuple()[1])),
        locked=locked,
        installed={name: _installed(name) for name in (*locked, "torch")},
        flags=cpu_flags() | gpu_flags(),
        cores=joblib.cpu_count(),
        memory=psutil.virtual_memory().total,
        disk=shutil.disk_usage(root).free,
        gpu=", ".join(name for name, _ in gpus()),
        absent={name: missing(name, weight_bits=7) for name in NAMES},
        links=tuple(_links(root)),
        locked_by=_held(root / ".dvc/tmp/rwlock"),
        remote=remote,
        remote_says=_remote_says(root) if remote else "",
        data=data,
        index=index,
        index_answers=bool(index) and not data and answers(index),
        mlflow=uri,
        mlflow_answers=_sqlite_opens(uri) if uri.startswith("sqlite") else answers(f"{uri}/health"),
        prefect=api,
        prefect_answers=not api or answers(f"{api.rstrip('/')}/health"),
        chromium=shutil.which("chromium") is not None,
    )


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _said(command: list[str], root: Path) -> str:
    """Standard output of a command; empty where it fails."""
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _remote_says(root: Path) -> str:
    """Ask DVC's default remote for one name, as `dvc push` would begin; what went wrong."""
    try:
        done = subprocess.run([sys.executable, "-c", ASK_REMOTE], cwd=root, capture_output=True,
                              text=True, timeout=REMOTE_S, check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"nothing in {REMOTE_S} s"
    said = done.stderr.strip().splitlines()
    return " ".join(said[-1:])[:200] if done.returncode else ""


def _links(root: Path) -> Iterator[str]:
    """Kinds of links that a file of the cache can have in the workspace, tried on an empty file."""
    cache = root / _dvc_cache(root)
    cache.mkdir(parents=True, exist_ok=True)
    source, target = cache / ".doctor", root / ".dvc" / ".doctor"
    source.write_bytes(b"")
    try:
        for name, make in (("hardlink", os.link), ("symlink", os.symlink)):
            target.unlink(missing_ok=True)
            try:
                make(source.resolve(), target)
            except OSError:
                continue
            yield name
    finally:
        target.unlink(missing_ok=True)
        source.unlink(missing_ok=True)


def _dvc_cache(root: Path) -> str:
    for name in ("config.local", "config"):  # a relative one is meant from beside them
        if found := _said(["git", "config", "-f", f".dvc/{name}", "cache.dir"], root):
            return os.path.normpath(Path(".dvc") / found)
    return ".dvc/cache"


def _held(lock: Path) -> bool:
    """Whether DVC's record of who reads and writes what names anyone who lives."""
    if not lock.is_file():
        return False
    pids = {int(pid) for pid in re.findall(r'"pid": ?(\d+)', lock.read_text("utf-8"))}
    return any(psutil.pid_exists(pid) for pid in pids)


def _sqlite_opens(uri: str) -> bool:
    """A store that is not there yet will be made: its folder has to be writable."""
    file = Path(uri.partition(":///")[2])
    if file.exists():
        try:
            with contextlib.closing(sqlite3.connect(file, timeout=2)) as store:
                store.execute("BEGIN IMMEDIATE").connection.rollback()
        except sqlite3.Error:
            return False
    with contextlib.suppress(OSError):
        home().mkdir(parents=True, exist_ok=True)
        place = next(folder for folder in file.parents if folder.exists())
        with tempfile.TemporaryFile(dir=home()), tempfile.TemporaryFile(dir=place):
            return True
    return False
