"""`stillroom doctor`: what this machine can do, what is missing, and what to type about it.

Every check is a pure function of what `flows.machine.look` found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flows.machine import Machine
from tasks.hardware import PROFILES, detect_profile, profile_of
from tasks.home import home
from tasks.processor import native_bf16, saturates
from tasks.schema import Params

Level = Literal["ok", "note", "problem"]
DISK_BYTES = 1_000_000_000
"""The main job left half of it: checkpoints in the cache 0.33 GB, the stores, the downloads."""
MEMORY_BYTES = 3_500_000_000
"""The largest stage, fine-tuning the teacher, held 1.8 GB, beside Prefect's server and MLflow."""
PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    found: str
    remedy: str = ""
    """The next command to type; empty where nothing is to be done."""


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
    here = profile_of(m.flags, like=wanted)
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
        "stillroom compress --set hardware.profile=cpu-avx2",
    )


def _threads(m: Machine, params: Params) -> Finding:
    wanted = params.hardware.threads
    if wanted > m.cores:
        return Finding(
            "threads",
            "note",
            f"hardware.threads is {wanted}, cores that may be used here: {m.cores}",
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
    if params.hardware.device == "cuda" and (m.installed["torch"] or "").endswith("+cpu"):
        return Finding(
            "gpu",
            "problem",
            f"hardware.device is cuda, and this torch is a build without CUDA ({m.gpu} is there)",
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
    remedy = f"ls -ld {home()}" if m.mlflow.startswith("sqlite") else "unset MLFLOW_TRACKING_URI"
    return Finding("mlflow", "problem", f"{m.mlflow}: does not answer", remedy)


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
