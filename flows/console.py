"""What a run looks like from the outside: its environment, and where it stands.

On a terminal a stage is a spinner with its latest number; through a pipe it is
plain lines, so that a log file reads well. With ``--json`` all of it goes to
stderr, and stdout is left to one JSON object.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.status import Status

from tasks import home

QUIET_S = 10.0
"""Through a pipe, a training stage says a number at most this often."""


def load_offline_env(path: Path | None = None) -> None:
    """Apply ``infra/offline.env`` and the homes of the tools; what is set already wins.

    Called before prefect or mlflow are imported: both read these at import.
    ``STILLROOM_HOME`` is exported because a stage that runs in a workspace would
    otherwise take the workspace for the checkout.
    """
    source = path or home.CHECKOUT / "infra" / "offline.env"
    if source.exists():
        for line in source.read_text("utf-8").splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                os.environ.setdefault(key.strip(), value.strip())
    os.environ["STILLROOM_HOME"] = str(home.home())
    os.environ.setdefault("PREFECT_HOME", str(home.home() / "prefect"))
    with contextlib.suppress(OSError):  # a full or read-only disk is reported by what needs it
        Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)


class Progress:
    """One line a stage, and what it says meanwhile.

    Args:
        to_stderr: leave stdout alone.
    """

    def __init__(self, *, to_stderr: bool = False) -> None:
        self.console = Console(
            file=sys.stderr if to_stderr else sys.stdout, highlight=False, soft_wrap=True
        )
        self._live = self.console.is_terminal
        self._status: Status | None = None
        self._stage = ""
        self._said = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def note(self, text: str) -> None:
        """A line of the run itself."""
        self.console.print(text, markup=False)

    def begin(self, stage: str, position: int, total: int) -> None:
        """A stage is about to be brought up to date."""
        self._stage, self._said = f"[{position}/{total}] {stage}", time.monotonic()
        if self._live:
            self._status = self.console.status(self._stage)
            self._status.start()
        else:
            self.note(f"{self._stage} …")

    def line(self, text: str) -> None:
        """What the stage printed."""
        text = text.rstrip()
        if text:
            self.console.print(f"      {text}", markup=False, style="dim")
            self._said = time.monotonic()

    def curve(self, row: Mapping[str, Any]) -> None:
        """The latest row of a training stage's history."""
        text = "  ".join(f"{key} {_short(value)}" for key, value in row.items())
        if self._status is not None:
            self._status.update(f"{self._stage}  {text}")
        elif time.monotonic() - self._said >= QUIET_S:
            self.line(text)

    def end(self, what: str, seconds: float | None = None) -> None:
        """The stage is up to date, or has failed."""
        self._stop()
        took = "" if seconds is None else f"  {seconds:.1f} s"
        self.note(f"{self._stage}  {what}{took}")

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
