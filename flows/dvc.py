"""DVC by its command line: its Python interface promises no stability.

stages(root)                      # the chain, in the order of dvc.yaml
changed(root)                     # which of them are not up to date
reproduce("prune", root)          # one of them; True when it ran, False when nothing was to do
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from tasks import home
from tasks.errors import StillroomError, UnavailableError, from_dict

CHATTER = ("To track the changes with git", "git add ", "Use `dvc push`", "Updating lock file",
           "Generating lock file", "To enable auto staging", "dvc config core.autostage",
           "Running stage", "Restored stage", "> ", "WARNING: 'metrics/")  # fmt: skip
"""What DVC says around a stage and a run's reader need not see; the last: that a file is empty,
as the curve of a stage is that did not train."""
GRACE_S = 5.0
"""Between asking a stage's processes to end and ending them."""


def environment() -> dict[str, str]:
    """The environment of DVC and the stages below it: this Python first, lines unbuffered."""
    bin_folder = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": bin_folder + os.pathsep + os.environ.get("PATH", os.defpath),
        "PYTHONUNBUFFERED": "1",
        "STILLROOM_HOME": str(home.home()),
    }


def stages(root: Path) -> list[str]:
    """Names in ``dvc.yaml``, top to bottom.

    Raises:
        UnavailableError: there is none to read.
    """
    try:
        return list(yaml.safe_load((root / "dvc.yaml").read_text("utf-8"))["stages"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UnavailableError(
            f"{root / 'dvc.yaml'}: no stages to read ({error})",
            next_command="git checkout dvc.yaml",
        ) from error


def locked(root: Path) -> dict[str, Any]:
    """What ``dvc.lock`` holds, by stage; empty where there is none."""
    try:
        content = yaml.safe_load((root / "dvc.lock").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return dict((content or {}).get("stages") or {})


def output_sha256(entry: Mapping[str, Any]) -> str:
    """One hash over a stage's outputs as its entry in ``dvc.lock`` names them."""
    outs = sorted((out["path"], out.get("md5", "")) for out in entry.get("outs", ()))
    return hashlib.sha256(json.dumps(outs).encode()).hexdigest()


def changed(root: Path) -> set[str]:
    """Stages that ``dvc status`` finds out of date; those after them may turn out to be, too.

    Raises:
        UnavailableError: DVC itself fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"],
        cwd=root, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        return set(json.loads(done.stdout)) & set(stages(root))
    except json.JSONDecodeError:
        raise UnavailableError(
            f"dvc status in {root}: {_last(done.stderr.splitlines())}", next_command="dvc status"
        ) from None


def reproduce(
    stage: str,
    root: Path,
    *,
    on_line: Callable[[str], None] = lambda line: None,
    on_start: Callable[[], None] = lambda: None,
) -> bool:
    """Bring one stage up to date.

    Its processes form a group of their own, which is ended when this call is
    left in any other way than by their end.

    Args:
        stage: name in ``dvc.yaml``.
        root: workspace.
        on_line: receives what the stage prints, line by line.
        on_start: called when the stage really runs.

    Returns:
        True when it ran, False when it was up to date or came out of the cache.

    Raises:
        StillroomError: the error that the stage left, or DVC's last words.
    """
    error_file = root / "metrics" / f"{stage}.error.json"
    error_file.unlink(missing_ok=True)
    ran, said = False, deque[str](maxlen=12)
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
    with process_group(command, cwd=root, env=environment()) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line.rstrip())
            if line.startswith("Running stage") and not ran:
                ran = True
                on_start()
            elif line.strip() and not line.lstrip().startswith(CHATTER):
                on_line(line)
        code = process.wait()
    if code:
        raise failure(root, stage, error_file, list(said))
    return ran


@contextlib.contextmanager
def process_group(
    command: list[str], *, cwd: Path, env: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Start a process as the head of a new group; end the whole group on the way out."""
    process = subprocess.Popen(
        command, cwd=cwd, env=dict(env), text=True, errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[Any], grace_s: float = GRACE_S) -> None:
    """End a process and everything in its group: asked first, then made to.

    Args:
        grace_s: how long it may take once it is asked.
    """
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:  # killed is not gone yet; the group is when it is empty
            os.killpg(process.pid, 0)
            time.sleep(0.01)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def failure(root: Path, stage: str, error_file: Path, said: list[str]) -> StillroomError:
    """The error a stage left behind, or one made of the last lines.

    A stage does not know where it is run from: its next ``dvc`` command is given the way there.
    """
    try:
        error = from_dict(json.loads(error_file.read_text("utf-8")))
    except (OSError, json.JSONDecodeError):
        error = StillroomError(
            f"stage {stage}: failed without a word of its own\n    " + "\n    ".join(said),
            next_command=f"dvc repro --single-item {stage}",
        )
    command = error.next_command or ""
    if not command.startswith("dvc ") or root.resolve() == Path.cwd():
        return error
    there = f"cd {shlex.quote(str(root))} && {command}"
    return type(error)(error.message, next_command=there)


@contextlib.contextmanager
def held(root: Path) -> Iterator[None]:
    """Hold a workspace for one run; a second one is turned away at once.

    Raises:
        UnavailableError: another process holds it; says which.
    """
    folder = home.home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    holder = folder / f"{name}.json"
    lock = FileLock(folder / f"{name}.lock", is_singleton=True, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UnavailableError(
            f"{root}: another run is at work here ({_holder(holder)}), expected none: wait for it, "
            "or work in another folder",
            next_command="stillroom compress --workspace DIR",
        ) from None
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        holder.write_text(json.dumps({"pid": os.getpid(), "since": now, "root": str(root)}))
        yield
    finally:
        if lock.lock_counter == 1:
            holder.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    try:
        record = json.loads(path.read_text("utf-8"))
        return f"process {record['pid']} since {record['since']}"
    except (OSError, ValueError, KeyError):
        return "it has not said who it is"


def _last(lines: list[str]) -> str:
    return next((line for line in reversed(lines) if line.strip()), "no output")
