"""`stillroom doctor`: what this machine can do, what is missing, and what to type about it.

Every check is a pure function of what `look` found; nothing is installed, started or changed but
two empty files, by which links are tried.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import psutil

from flows.stack import answers
from tasks.gpu import gpu_flags, gpus
from tasks.hardware import PROFILES, detect_profile, profile_of
from tasks.home import home, tracking_uri
from tasks.processor import cpu_flags, native_bf16, saturates
from tasks.runtimes.interface import NAMES, missing
from tasks.schema import Params

Level = Literal["ok", "note", "problem"]
DISK_BYTES = 1_000_000_000
"""The main job left half of it: checkpoints in the cache 0.33 GB, the stores, the downloads."""
MEMORY_BYTES = 3_500_000_000
"""The largest stage, fine-tuning the teacher, held 1.8 GB, beside Prefect's server and MLflow."""
PYTHON = (3, 11)
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
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    found: str
    remedy: str = ""
    """The next command to type; empty where nothing is to be done."""


@dataclass(frozen=True)
class Machine:
    """What was found, before anyone judges it."""

    python: tuple[int, int]
    locked: Mapping[str, str]
    installed: Mapping[str, str | None]
    flags: frozenset[str]
    cores: int
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
        cores=os.cpu_count() or 1,
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


def judge(machine: Machine, params: Params) -> list[Finding]:
    """Everything that was found, in the order in which it should be mended."""
    return [check(machine, params) for check in CHECKS]


def healthy(findings: list[Finding]) -> bool:
    """Whether the main job could run."""
    return all(finding.level != "problem" for finding in findings)


def report(findings: list[Finding]) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "ok": healthy(findings),
        "profile": detect_profile(),
        "findings": [asdict(finding) for finding in findings],
    }


def _python(m: Machine, params: Params) -> Finding:
    found = ".".join(map(str, m.python))
    if m.python == PYTHON:
        return Finding("python", "ok", found)
    return Finding("python", "problem", f"{found}, expected 3.11", "make PYTHON=python3.11 run")


def _packages(m: Machine, params: Params) -> Finding:
    wrong = [
        f"{name} {m.installed.get(name) or 'missing'}, locked {pin}"
        for name, pin in m.locked.items()
        if m.installed.get(name) != pin
    ]
    if not (m.installed.get("torch") or "").startswith("2.13.0"):
        wrong.append(f"torch {m.installed.get('torch') or 'missing'}, expected 2.13.0")
    if not wrong:
        return Finding("packages", "ok", f"all {len(m.locked) + 1} as locked")
    more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return Finding(
        "packages", "problem", "; ".join(wrong[:3]) + more, "rm -f .venv/ready && make .venv/ready"
    )


def _profile(m: Machine, params: Params) -> Finding:
    wanted = params.hardware.profile
    here = profile_of(m.flags, gpu=wanted.startswith("gpu-"))
    if here == wanted:
        return Finding("profile", "ok", f"{wanted}, as hardware.profile says")
    if PROFILES[wanted].needs <= m.flags:
        return Finding(
            "profile",
            "note",
            f"this machine is {here}; bundles are built for {wanted}, which runs here, too",
            f"stillroom compress --set hardware.profile={here}",
        )
    return Finding(
        "profile",
        "note",
        f"this machine is {here}; bundles are built for {wanted}: they "
        "answer alike here, their speed is another",
        f"stillroom compress --set hardware.profile={here}"
        if here in PROFILES
        else "stillroom compress --help",
    )


def _bfloat16(m: Machine, params: Params) -> Finding:
    if native_bf16(m.flags):
        return Finding("bfloat16", "ok", "native")
    return Finding(
        "bfloat16",
        "note",
        "not native: training falls back to fp32, about three times "
        "slower than on a processor that has it",
    )


def _int8(m: Machine, params: Params) -> Finding:
    if not saturates(m.flags):
        return Finding("int8", "ok", "byte products are added in 32 bits")
    return Finding(
        "int8",
        "note",
        "byte products are added in 16 bits: bundles with 8-bit weights "
        "take an exact, slower path here; profiles with 7-bit weights need none",
    )


def _threads(m: Machine, params: Params) -> Finding:
    wanted = params.hardware.threads
    if wanted > m.cores:
        return Finding(
            "threads",
            "note",
            f"hardware.threads is {wanted}, the machine has {m.cores} cores",
            f"stillroom compress --set hardware.threads={m.cores}",
        )
    return Finding("threads", "ok", f"{wanted} of {m.cores} cores")


def _gpu_finding(m: Machine, params: Params) -> Finding:
    if params.hardware.device == "cuda" and not m.gpu:
        return Finding(
            "gpu",
            "problem",
            "hardware.device is cuda, and no GPU was found",
            "stillroom compress --set hardware.device=cpu",
        )
    return Finding("gpu", "ok", f"{m.gpu or 'none'}; nothing of the main job needs one")


def _runtimes(m: Machine, params: Params) -> Finding:
    able = [name for name, why in m.absent.items() if why is None]
    asked = [f"{name}: {m.absent[name]}" for name in params.quantize.runtimes if m.absent[name]]
    others = [f"{name}: {why}" for name, why in m.absent.items() if why]
    if asked:
        return Finding("runtimes", "note", f"{'; '.join(asked)}; ONNX Runtime would answer for it",
                       "stillroom compress --set quantize.runtimes=[onnxruntime]")  # fmt: skip
    return Finding("runtimes", "ok", f"{', '.join(able)} ({'; '.join(others)})" if others
                   else ", ".join(able))  # fmt: skip


def _memory(m: Machine, params: Params) -> Finding:
    found = f"{m.memory / 1e9:.1f} GB"
    if m.memory >= MEMORY_BYTES:
        return Finding("memory", "ok", found)
    return Finding("memory", "problem", f"{found}, expected {MEMORY_BYTES / 1e9:.1f}", "free -h")


def _disk(m: Machine, params: Params) -> Finding:
    needed = DISK_BYTES // (4 if m.data else 1)
    found = f"{m.disk / 1e9:.1f} GB free"
    if m.disk >= needed:
        return Finding("disk", "ok", found)
    return Finding("disk", "problem", f"{found}, expected {needed / 1e9:.1f}", "dvc gc --workspace")


def _cache(m: Machine, params: Params) -> Finding:
    if m.locked_by:
        return Finding(
            "dvc", "problem", "another process is at work in this workspace", "cat .dvc/tmp/rwlock"
        )
    if m.remote_says:
        return Finding("dvc", "note", f"remote {m.remote} does not answer ({m.remote_says}): dvc "
                       "push and dvc pull will fail", "dvc remote list")  # fmt: skip
    if {"hardlink", "reflink"} & set(m.links):
        return Finding(
            "dvc", "ok", f"the cache links ({', '.join(m.links)}), remote {m.remote or 'none'}"
        )
    return Finding(
        "dvc",
        "note",
        f"the cache can only use {', '.join(m.links) or 'copies'}: put it "
        "on the workspace's file system",
        "dvc cache dir --local .dvc/cache",
    )


def _network(m: Machine, params: Params) -> Finding:
    if m.data:
        return Finding("index", "ok", "not needed: what is fetched lies in data/raw")
    if not m.index:
        return Finding("index", "ok", "pip's default, not asked")
    if m.index_answers:
        return Finding("index", "ok", "the index that pip was told of answers")
    remedy = "python -m pip config list"
    return Finding(
        "index", "problem", f"{m.index}: pip was told of it, and it does not answer", remedy
    )


def _mlflow(m: Machine, params: Params) -> Finding:
    if m.mlflow_answers:
        return Finding("mlflow", "ok", m.mlflow.partition("://")[0] + " store answers")
    return Finding("mlflow", "problem", f"{m.mlflow}: does not answer", "unset MLFLOW_TRACKING_URI")


def _prefect(m: Machine, params: Params) -> Finding:
    if not m.prefect:
        return Finding("prefect", "ok", "no server: every run starts one of its own")
    if m.prefect_answers:
        return Finding("prefect", "ok", f"{m.prefect} answers")
    return Finding("prefect", "problem", f"{m.prefect}: does not answer", "unset PREFECT_API_URL")


def _browser(m: Machine, params: Params) -> Finding:
    found = "Chromium" if m.chromium else "no Chromium: one test of the report page is skipped"
    return Finding(
        "browser",
        "ok" if m.chromium else "note",
        found,
        "" if m.chromium else "apt-get install chromium",
    )


CHECKS: tuple[Callable[[Machine, Params], Finding], ...] = (
    _python,
    _packages,
    _memory,
    _disk,
    _network,
    _cache,
    _mlflow,
    _prefect,
    _gpu_finding,
    _runtimes,
    _profile,
    _bfloat16,
    _int8,
    _threads,
    _browser,
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
    found = _said(["git", "config", "-f", ".dvc/config.local", "cache.dir"], root)
    return found if Path(found).is_absolute() else ".dvc/cache"


def _held(lock: Path) -> bool:
    """Whether DVC's record of who reads and writes what names anyone who lives."""
    if not lock.is_file():
        return False
    pids = {int(pid) for pid in re.findall(r'"pid": ?(\d+)', lock.read_text("utf-8"))}
    return any(psutil.pid_exists(pid) for pid in pids)


def _sqlite_opens(uri: str) -> bool:
    """A store that is not there yet will be made: its folder has to be writable."""
    file = Path(uri.partition(":///")[2])
    place = next(p for p in (file, *file.parents) if p.exists())
    return os.access(place, os.W_OK) and (home().exists() or os.access(place, os.X_OK))
