"""A command as a process: its error is read, it is ended, and a long stage is not silent."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from flows import child
from flows.console import Progress
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


def test_a_run_is_ended_with_the_one_that_started_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    child.end(process)
    assert process.returncode == -15


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
