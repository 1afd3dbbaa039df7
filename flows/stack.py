"""The servers: a temporary Prefect for one run, or the whole stack of this machine.

    python -m flows.stack up       # what infra/Procfile names, each in the background; waits
    python -m flows.stack down     # and ends it

A run asks `prefect_api` where to report. Where the user has set an API, or the
stack is up, it is that; otherwise a server of the run's own, started at once and
waited for only when everything else is ready.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from flows.console import load_offline_env
from flows.dvc import end_group, environment
from tasks import home
from tasks.errors import StillroomError, UnavailableError

START_S = 120.0
"""A first start writes Prefect's database, which takes its time on a slow disk."""
PORTS = {"PREFECT_PORT": "4200", "MLFLOW_PORT": "5000"}
HEALTH = {
    "prefect": "http://127.0.0.1:{PREFECT_PORT}/api/health",
    "mlflow": "http://127.0.0.1:{MLFLOW_PORT}/health",
}
POOL = "stillroom"


class Server:
    """A Prefect API to report to.

    Args:
        url: ends in ``/api``.
        process: where it is our own to end.
        log: what that process says.
    """

    def __init__(self, url: str, process: subprocess.Popen[bytes] | None, log: Path) -> None:
        self.url, self._process, self._log = url, process, log

    def wait(self) -> str:
        """Its URL, once it answers.

        Raises:
            UnavailableError: it does not.
        """
        deadline = time.monotonic() + START_S
        while not answers(f"{self.url}/health"):
            ended = self._process is not None and self._process.poll() is not None
            if ended or self._process is None or time.monotonic() > deadline:
                raise UnavailableError(
                    f"Prefect at {self.url}: does not answer{_tail(self._log)}",
                    next_command="unset PREFECT_API_URL, or prefect server start",
                )
            time.sleep(0.05)
        return self.url

    def alive(self) -> bool:
        """Whether it can still be reported to."""
        return self._process is None or self._process.poll() is None

    def stop(self) -> None:
        """End it, where it is our own."""
        if self._process is not None:
            end_group(self._process)


_OWN: list[Server] = []
"""The temporary server of this process: at most one, kept for its next run."""


def prefect_api() -> Server:
    """Where this run reports; starts a temporary server where there is none."""
    log = home.home() / "prefect" / "temporary-server.log"
    if _OWN and _OWN[0].alive():
        return _OWN[0]
    if url := os.environ.get("PREFECT_API_URL"):
        return Server(url.rstrip("/"), None, log)
    record = _record()
    if record and answers(HEALTH["prefect"].format(**record["ports"])):
        return Server(
            HEALTH["prefect"].format(**record["ports"]).removesuffix("/health"), None, log
        )
    _OWN[:] = [_temporary(log)]
    # registered before Prefect's own threads register theirs, so it is run after them
    atexit.register(_OWN[0].stop)
    return _OWN[0]


def _temporary(log: Path) -> Server:
    """Start the server that `prefect` itself would start, without importing it here."""
    log.parent.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app",
               "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]  # fmt: skip
    env = {**environment(), "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1",
           "PREFECT__SERVER_FINAL": "1", "PREFECT_API_BLOCKS_REGISTER_ON_START": "0"}  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=env, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return Server(f"http://127.0.0.1:{port}/api", process, log)


def free_port() -> int:
    """A port that nothing listens at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def procfile(path: Path) -> dict[str, str]:
    """``name: command`` lines."""
    lines = [line.partition(":") for line in path.read_text("utf-8").splitlines()]
    return {n.strip(): c.strip() for n, sep, c in lines if sep and not n.startswith("#")}


def up() -> None:
    """Start what ``infra/Procfile`` names and wait until it answers; again does nothing.

    Raises:
        UnavailableError: something ended or does not answer; all is taken down again.
    """
    folder = home.home() / "run"
    folder.mkdir(parents=True, exist_ok=True)
    (home.home() / "mlflow" / "artifacts").mkdir(parents=True, exist_ok=True)
    ports = {key: os.environ.get(key, default) for key, default in PORTS.items()}
    env = {**environment(), **ports, "TRACKING_URI": home.tracking_uri(),
           "PREFECT_API_URL": f"http://127.0.0.1:{ports['PREFECT_PORT']}/api"}  # fmt: skip
    if _record():
        print("the stack is up already: make down ends it")
        return
    started: dict[str, int] = {}
    try:
        for name, command in procfile(home.CHECKOUT / "infra" / "Procfile").items():
            print(f"{name}: starting", flush=True)
            url = HEALTH[name].format(**ports) if name in HEALTH else None
            if url and answers(url):
                raise UnavailableError(
                    f"{name}: something else answers at {url}, expected nothing",
                    next_command="PREFECT_PORT=4300 MLFLOW_PORT=5300 make up",
                )
            process = _spawn(name, command, env, folder)
            started[name] = process.pid
            _write_record(folder, started, ports)
            _await(name, process, url, folder)
            if name == "prefect":
                deploy(env)
    except BaseException:
        down()
        raise
    print(f"Prefect  http://127.0.0.1:{ports['PREFECT_PORT']}")
    print(f"MLflow   http://127.0.0.1:{ports['MLFLOW_PORT']}")
    print(f"logs in {folder}; make down ends it")


def deploy(env: Mapping[str, str]) -> None:
    """Make the work pool and the deployments of ``infra/prefect.yaml``; again does no harm.

    Raises:
        UnavailableError: Prefect refuses.
    """
    prefect = [sys.executable, "-m", "prefect"]
    for command in (
        [*prefect, "work-pool", "create", POOL, "--type", "process", "--overwrite"],
        [*prefect, "--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml"],
    ):
        done = subprocess.run(
            command, cwd=home.CHECKOUT, env=dict(env), capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stdout + done.stderr).strip().splitlines()[-6:]
            raise UnavailableError(
                f"{shlex.join(command[2:])}: " + "\n    ".join(last),
                next_command="make down && make up",
            )


def down() -> None:
    """End what `up` started, the last first."""
    record = _record()
    for name, pid in reversed(list((record or {}).get("pids", {}).items())):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
                os.killpg(pid, 0)
                time.sleep(0.1)
            os.killpg(pid, signal.SIGKILL)
        (home.home() / "run" / f"{name}.pid").unlink(missing_ok=True)
        print(f"{name}: ended")
    (home.home() / "run" / "stack.json").unlink(missing_ok=True)
    if not record:
        print("the stack is not up")


def _spawn(
    name: str, command: str, env: Mapping[str, str], folder: Path
) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"], cwd=home.CHECKOUT, env=dict(env),
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    (folder / f"{name}.pid").write_text(f"{process.pid}\n")
    return process


def _await(name: str, process: subprocess.Popen[bytes], url: str | None, folder: Path) -> None:
    deadline = time.monotonic() + (START_S if url else 3.0)
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UnavailableError(
                f"{name}: ended at once{_tail(folder / f'{name}.log')}",
                next_command="make down && make up",
            )
        if url and answers(url):
            return
        time.sleep(0.2)
    if url:
        raise UnavailableError(
            f"{name}: no answer at {url} after {START_S:.0f} s", next_command="make down"
        )


def _write_record(folder: Path, pids: Mapping[str, int], ports: Mapping[str, str]) -> None:
    (folder / "stack.json").write_text(json.dumps({"pids": dict(pids), "ports": dict(ports)}))


def _record() -> dict[str, dict[str, int]] | None:
    """What `up` wrote down, as long as one of its processes lives."""
    try:
        record = json.loads((home.home() / "run" / "stack.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    for pid in record["pids"].values():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, 0)
            return dict(record)
    return None


def _tail(log: Path) -> str:
    try:
        lines = log.read_text("utf-8", errors="replace").strip().splitlines()[-6:]
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in lines)


if __name__ == "__main__":
    load_offline_env()
    try:
        {"up": up, "down": down}[" ".join(sys.argv[1:])]()
    except KeyError:
        sys.exit("usage: python -m flows.stack up|down")
    except StillroomError as problem:
        print(problem, file=sys.stderr)
        sys.exit(problem.exit_code)
