"""infra/prefect.yaml, deployed to a real Prefect server of the test's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import stack
from tasks.home import CHECKOUT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server with `infra/prefect.yaml` deployed; its process group ends with the test."""
    folder = tmp_path_factory.mktemp("prefect")
    port = stack.free_port()
    url = f"http://127.0.0.1:{port}/api"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    env = {**kept, **offline(), "PREFECT_HOME": str(folder), "PREFECT_API_URL": url}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1",
               "--port", str(port), "--no-ui"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        stack.Server(url, process, folder / "log").wait()
        stack.deploy(env)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def offline() -> dict[str, str]:
    lines = (CHECKOUT / "infra" / "offline.env").read_text("utf-8").splitlines()
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    return dict(pairs)


def deployments(api: str) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{api}/deployments/filter", b"{}", {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return {deployment["name"]: deployment for deployment in json.load(reply)}


def test_all_are_deployed_one_at_a_time(api: str) -> None:
    found = deployments(api)
    assert set(found) == {"weekly", "promote", "rollback"}
    for deployment in found.values():
        assert deployment["work_pool_name"] == stack.POOL
        assert deployment["global_concurrency_limit"]["limit"] == 1
        assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_the_scheduled_run(api: str) -> None:
    weekly = deployments(api)["weekly"]
    assert weekly["entrypoint"] == "flows/retrain.py:retrain"
    (schedule,) = weekly["schedules"]
    assert schedule["active"]
    assert schedule["schedule"]["cron"] == "0 3 * * 0"
    assert weekly["parameters"] == {"recipe": None, "overrides": [], "promotion": "if_passed"}


def test_worker_runs_in_the_checkout_and_fetches_nothing(api: str) -> None:
    for deployment in deployments(api).values():
        (step,) = deployment["pull_steps"]
        ((name, arguments),) = step.items()
        assert name == "prefect.deployments.steps.set_working_directory"
        assert Path(arguments["directory"]) == CHECKOUT


def test_entrypoints_exist() -> None:
    content = yaml.safe_load((CHECKOUT / "infra" / "prefect.yaml").read_text("utf-8"))
    for deployment in content["deployments"]:
        path, _, flow = deployment["entrypoint"].partition(":")
        assert f"def {flow}(" in (CHECKOUT / path).read_text("utf-8")


def test_every_switch_is_explained() -> None:
    text = (CHECKOUT / "infra" / "offline.env").read_text("utf-8")
    assert {
        "DVC_NO_ANALYTICS",
        "MLFLOW_DISABLE_TELEMETRY",
        "PREFECT_SERVER_ANALYTICS_ENABLED",
        "HF_HUB_OFFLINE",
        "DO_NOT_TRACK",
    } <= set(offline())
    for block in text.split("\n\n"):
        assert block.lstrip().startswith("#"), f"no word on {block.splitlines()[0]}"
