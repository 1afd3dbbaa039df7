"""One command of Stillroom as a process of its own: log kept, stages shown, answer read.

Whoever runs many of them, as `flows.ablate` does, leaves none behind.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flows import dvc
from flows.console import Progress
from tasks.errors import StillroomError, from_dict

GRACE_S = 60.0
"""For a run to end its stages and close its record once it is told to stop."""
KINDS = {2: "UsageError", 3: "GateRefused", 4: "IntegrityError", 5: "UnavailableError"}
STAGE_LINE = re.compile(r"\[\d+/\d+\] \w+")
"""Of all that a run says, what is always shown; the rest is in its log."""
QUIET_S = 60.0
"""After so long without one, whatever the run says next is shown, too."""


@dataclass(frozen=True)
class Ended:
    """What a command came to."""

    said: Sequence[str]
    """The last lines of its log."""
    code: int
    outcome: Mapping[str, Any]
    """The object that it printed; empty where there is none."""

    def error(self) -> StillroomError:
        """The error that it ended with, read from what it said."""
        starts = [i for i, line in enumerate(self.said) if line.startswith("error: ")]
        words = self.said[starts[-1] :] if starts else [f"a run ended with exit code {self.code}"]
        message, command = [], None
        for line in words:
            if line.startswith("  next: "):
                command = line.removeprefix("  next: ")
                break
            message.append(line.removeprefix("error: "))
        return from_dict(
            {"kind": KINDS.get(self.code), "message": "\n".join(message), "next_command": command}
        )


def run(words: Sequence[str], *, log: Path, progress: Progress) -> Ended:
    """Run ``stillroom …``, given with ``--json``.

    Args:
        words: of the command line, without the program.
        log: all that it says; what it answers lies beside it as JSON.
        progress: is shown its stages.

    Raises:
        KeyboardInterrupt: it was interrupted, or this process was; it has ended in any case.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # -P: the folder that this runs in may hold another working tree
    command = [sys.executable, "-P", "-m", "flows.cli", *words]
    with log.with_suffix(".json").open("w+") as answer, log.open("w") as kept:
        process = subprocess.Popen(
            command, env=dvc.environment(), text=True, errors="replace", stdout=answer,
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            said = follow(process.stderr, kept, progress)
            code = process.wait()
        finally:
            dvc.end_group(process, GRACE_S)
        answer.seek(0)
        text = answer.read()
    if code == 130:
        raise KeyboardInterrupt
    try:
        outcome = json.loads(text)
    except json.JSONDecodeError:
        outcome = {}
    return Ended(said, code, outcome if isinstance(outcome, dict) else {})


def follow(lines: IO[str], log: IO[str], progress: Progress) -> list[str]:
    """Keep what a run says, and show where it stands; returns the last lines."""
    last = deque[str](maxlen=40)
    shown = time.monotonic()
    for line in lines:
        log.write(line)
        log.flush()
        last.append(line.rstrip())
        if STAGE_LINE.match(line) or time.monotonic() - shown >= QUIET_S:
            progress.line(line)
            shown = time.monotonic()
    return list(last)
