"""What the tests share: the command line in a state of its own, and one run of the smoke recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from flows.console import load_offline_env

load_offline_env()
settings.register_profile("stillroom", deadline=None)  # a busy machine is no mistake
settings.load_profile("stillroom")
ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Shell:
    """Runs commands as a user would, with all state under `home`."""

    home: Path
    cwd: Path = ROOT

    @property
    def env(self) -> dict[str, str]:
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "STILLROOM_HOME": str(self.home), "PATH": path}

    def __call__(self, *command: str, cwd: Path | None = None, timeout: float = 600) -> Answer:
        done = subprocess.run(
            list(command), cwd=cwd or self.cwd, env=self.env, text=True, capture_output=True,
            check=False, timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Answer(done.returncode, done.stdout, done.stderr)

    def stillroom(self, *words: str, **options: Any) -> Answer:
        return self("stillroom", *words, **options)


@dataclass(frozen=True)
class Run:
    """A finished run: the shell that made it, its workspace, what it printed."""

    shell: Shell
    workspace: Path
    said: dict[str, Any]


SMOKE = ("compress", "--recipe", "smoke")
START_S = 3.2
"""A stage's imports on the machine that limits of time were set on: infra/decisions/start-up.md."""


def pace() -> float:
    """How many times longer programs take to start here than there; 1 on a faster machine."""
    code = "import gc, os; gc.disable(); import tasks.finetune; os._exit(0)"
    took = []
    for _ in range(2):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        took.append(time.monotonic() - started)
    return max(min(took) / START_S, 1.0)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The smoke recipe, through every stage, registered and promoted as version 1.

    Under ``STILLROOM_TEST_HOME``, where that is set: `make test` has two passes, and the second
    finds what the first worker of the first has made. Each worker has a home of its own.
    """
    given = os.environ.get("STILLROOM_TEST_HOME")
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    home = Path(given).resolve() / worker if given else tmp_path_factory.mktemp("home")
    shell = Shell(home)
    done = shell.stillroom(*SMOKE, "--promote", "--json", timeout=1500)
    assert done.code == 0, done.err
    return Run(shell, Path(done.json["workspace"]), done.json)


@pytest.fixture(scope="session")
def smoke_variant(smoke: Run) -> Callable[..., Run]:
    """The smoke recipe with further settings, in the same state; nothing is promoted."""

    def run(*settings: str, code: int = 0, promote: bool = False) -> Run:
        words = [word for setting in settings for word in ("--set", setting)]
        done = smoke.shell.stillroom(*SMOKE, *words, "--json", *["--promote"] * promote)
        assert done.code == code, done.err
        return Run(smoke.shell, Path(done.json["workspace"]), done.json)

    return run
