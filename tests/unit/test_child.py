"""A command as a process: its error is read, it is ended, and a long stage is not silent."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import child
from flows.console import Progress
from flows.dvc import end_group
from tasks.errors import (
    GateRefused,
    IntegrityError,
    StillroomError,
    UnavailableError,
    UsageError,
)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(1, StillroomError), (2, UsageError), (3, GateRefused), (4, IntegrityError),
     (5, UnavailableError), (-9, StillroomError)],
)  # fmt: skip
def test_the_error_of_a_run_is_read_from_what_it_printed(code: int, kind: type[Exception]) -> None:
    said = ["[1/10] fetch …", "error: an older one", "error: fetch: nothing there", "  and more",
            "  next: df -h .", "trailing"]  # fmt: skip
    error = child.Ended(said, code, {}).error()
    assert type(error) is kind
    assert error.message == "fetch: nothing there\n  and more"
    assert error.next_command == "df -h ."
    assert f"exit code {code}" in child.Ended(["Killed"], code, {}).error().message


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(grandchild.pid, file=sys.stderr, flush=True)
time.sleep(60)
"""
"""Does not end when it is asked, and has started a process itself."""


@pytest.mark.parametrize(("source", "code"), [("import time; time.sleep(60)", -15), (STUBBORN, -9)])
def test_a_run_is_ended_with_all_that_it_started(source: str, code: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    assert process.stderr is not None
    started = process.stderr.readline() if source == STUBBORN else None
    end_group(process, 0.5)
    assert process.returncode == code
    assert process.stderr.closed
    if started is not None:
        assert not psutil.pid_exists(int(started))


def test_a_run_that_is_interrupted_is_not_left_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def started(*words: Any, **options: Any) -> subprocess.Popen[str]:
        seen.append(popen(*words, **options))
        return seen[-1]

    def interrupted(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(child.subprocess, "Popen", started)
    monkeypatch.setattr(child, "follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child.run(["doctor", "--json"], log=tmp_path / "run.log", progress=Progress())
    assert seen[0].poll() is not None


@pytest.mark.parametrize(("quiet_s", "shown"), [(60.0, 2), (0.0, 4)])
def test_a_stage_that_takes_long_is_heard_of(
    quiet_s: float, shown: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(child, "QUIET_S", quiet_s)
    text = "[1/10] fetch …\n[2/10] teach …\n      step 20  loss 1.2\n      step 40  loss 0.9\n"
    log = io.StringIO()
    last = child.follow(io.StringIO(text), log, Progress(to_stderr=True))
    assert log.getvalue() == text
    assert last == text.splitlines()
    assert len(capsys.readouterr().err.splitlines()) == shown
