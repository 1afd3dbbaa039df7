"""Whole runs of a checkout in miniature: once through, again, refused, failed, interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from flows import dvc, stack
from tasks.errors import DataError, StillroomError, UnavailableError
from tasks.home import CHECKOUT
from tasks.params import load
from tests.conftest import pace
from tests.pipeline.tiny_project import DRIVER, STAGES, build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "checkout")


def environment(**more: str) -> dict[str, str]:
    quiet = ("STILLROOM_", "PREFECT_", "MLFLOW_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(quiet)}
    return {**kept, "PYTHONPATH": str(CHECKOUT), **more}


def command(checkout: Path, **arguments: Any) -> list[str]:
    return [sys.executable, "-c", DRIVER, str(checkout), json.dumps(arguments)]


def run(checkout: Path, *, env: dict[str, str] | None = None, **arguments: Any) -> Any:
    return subprocess.run(
        command(checkout, **arguments),
        cwd=checkout,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def client(checkout: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{checkout}/var/mlflow/mlflow.db")


def tracked(checkout: Path) -> tuple[Any, list[Any]]:
    """The latest pipeline run, and all stage runs."""
    store = client(checkout)
    (experiment,) = [e for e in store.search_experiments() if e.name == "banking77"]
    runs = store.search_runs([experiment.experiment_id], order_by=["start_time DESC"])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    parents.sort(key=lambda r: r.info.start_time)
    return parents[-1], [r for r in runs if "mlflow.parentRunId" in r.data.tags]


@pytest.fixture(scope="module")
def first(checkout: Path) -> Any:
    """The first run of all, in the checkout."""
    done = run(checkout, promote=True, as_json=True)
    assert done.returncode == 0, done.stderr
    return done


def test_json_is_all_of_stdout(checkout: Path, first: Any) -> None:
    outcome = json.loads(first.stdout)
    assert outcome["model"] == "banking77"
    assert outcome["workspace"] == str(checkout)
    assert (outcome["passed"], outcome["promoted"], outcome["version"]) == (True, True, 1)
    assert outcome["stages_run"] == list(STAGES)
    assert outcome["plumbing"]["total_s"] > outcome["plumbing"]["work_s"] > 0
    assert outcome["unrecorded"] == []


def test_says_where_it_stands(first: Any) -> None:
    assert "[1/10] fetch …" in first.stderr
    assert "prune: at work" in first.stderr
    assert "[10/10] deploy  done" in first.stderr
    assert "PROMOTED" in first.stderr
    assert "DVC, Prefect, MLflow and starts" in first.stderr
    assert "mlflow ui --backend-store-uri sqlite:///" in first.stderr
    for noise in ("Traceback", "INFO", "Running stage", "alembic", "Warning", "WARNING"):
        assert noise not in first.stderr


def test_run_is_recorded_with_a_child_for_each_stage(checkout: Path, first: Any) -> None:
    parent, stages = tracked(checkout)
    tags, store = parent.data.tags, client(checkout)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=checkout, text=True).strip()
    assert (tags["commit"], tags["dirty"]) == (head, "false")
    assert tags["hardware_profile"] == load(CHECKOUT / "params.yaml").hardware.profile
    assert tags["verdict"] == "passed"
    assert len(tags["dvc_lock_sha256"]) == len(tags["params_sha256"]) == 64
    assert parent.data.params["prune.scope"]
    assert {run.data.tags["stage"] for run in stages} == set(STAGES)
    for stage in stages:
        name = stage.data.tags["stage"]
        assert stage.info.status == "FINISHED"
        assert tags[f"stage.{name}.run_id"] == stage.info.run_id
        assert stage.data.metrics["accuracy"] == 0.5
        assert stage.data.metrics["n.test"] == 7
        assert stage.data.metrics["runtime.work_s"] >= 0
    (distill,) = [run for run in stages if run.data.tags["stage"] == "distill"]
    curve = store.get_metric_history(distill.info.run_id, "curve.loss")
    assert sorted((m.step, m.value) for m in curve) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert "distill.temperature" in distill.data.params
    assert [i.dataset.name for i in distill.inputs.dataset_inputs] == ["banking77-train"]
    names = {file.path for file in store.list_artifacts(parent.info.run_id)}
    assert {"params.yaml", "dvc.lock", "gate.json"} <= names


@pytest.mark.alone
def test_nothing_to_do_takes_less_than_fifteen_seconds(checkout: Path, first: Any) -> None:
    before, stages_before = tracked(checkout)
    took, limit = [], 15 * pace()
    for _ in range(2):  # the better of two: what else this machine does is not what is measured
        started = time.monotonic()
        done = run(checkout, as_json=True)
        took.append(time.monotonic() - started)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["stages_run"] == []
        if took[-1] < limit:
            break
    parent, stages = tracked(checkout)
    assert parent.info.run_id != before.info.run_id
    assert len(stages) == len(stages_before), "an up-to-date stage was recorded a second time"
    for stage in stages:
        assert parent.data.tags[f"stage.{stage.data.tags['stage']}.run_id"] == stage.info.run_id
    assert parent.data.metrics["test_openings"] == 1
    assert min(took) < limit


def test_workspace_reuses_what_the_checkout_has_and_a_refusal_registers_nothing(
    checkout: Path, first: Any
) -> None:
    before = (checkout / "dvc.lock").read_bytes()
    done = run(checkout, overrides=["gate.max_drop=0.5"], promote=True, as_json=True)
    assert done.returncode == 3
    outcome = json.loads(done.stdout)
    assert (outcome["passed"], outcome["version"], outcome["promoted"]) == (False, None, False)
    assert outcome["stages_run"] == ["validate"]
    assert outcome["verdict"]["checks"][0]["metric"] == "drop"
    assert "drop: found 0.75, expected at most 0.5" in done.stderr
    assert "bytes:" not in done.stderr
    assert "REGISTERED" not in done.stderr
    workspace = Path(outcome["workspace"])
    assert workspace.is_relative_to(checkout / "var" / "workspaces")
    assert not (workspace / "data" / "models" / "deploy").exists()
    assert (checkout / "dvc.lock").read_bytes() == before
    parent, _ = tracked(checkout)
    assert (parent.info.status, parent.data.tags["verdict"]) == ("FINISHED", "refused")
    names = {file.path for file in client(checkout).list_artifacts(parent.info.run_id)}
    assert "gate.json" in names
    assert parent.data.metrics["test_openings"] == 2


def test_bare_repro_is_recorded_by_the_next_run(checkout: Path, first: Any) -> None:
    """A stage that ran with no flow around it stands in MLflow once the flow has seen it."""
    _, before = tracked(checkout)
    env = environment(STILLROOM_HOME=str(checkout / "var"), DVC_NO_ANALYTICS="1")
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    repro = [sys.executable, "-m", "dvc", "repro", "-q", "--force", "--single-item", "prune"]
    subprocess.run(repro, cwd=checkout, env=env, check=True)
    done = run(checkout, as_json=True)
    assert done.returncode == 0, done.stderr
    _, after = tracked(checkout)
    (new,) = {r.info.run_id for r in after} - {r.info.run_id for r in before}
    (recorded,) = [r for r in after if r.info.run_id == new]
    assert recorded.data.tags["stage"] == "prune"
    assert recorded.data.tags["recorded"] == "afterwards"


def test_a_stages_error_is_the_commands(checkout: Path, first: Any) -> None:
    done = run(checkout, overrides=["distill.temperature=9.0"], env={"TINY_FAIL": "distill"})
    assert done.returncode == 2
    assert done.stderr.strip().endswith("data.train: found nothing\n  next: ls")
    assert "Traceback" not in done.stderr + done.stdout
    parent, stages = tracked(checkout)
    assert parent.info.status == "FAILED"
    (failed,) = [run for run in stages if run.info.status == "FAILED"]
    assert "data.train" in failed.data.tags["error"]


def test_scheduled_run_works_on_what_is_committed_and_leaves_a_branch(
    checkout: Path, first: Any
) -> None:
    def git(*arguments: str) -> str:
        return subprocess.check_output(["git", *arguments], cwd=checkout, text=True).strip()

    stray = checkout / "stray.py"
    stray.write_text("half done")
    try:
        done = run(checkout, overrides=["distill.temperature=3.5"], promotion="if_passed")
    finally:
        stray.unlink()
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["promoted"]
    branch = outcome["branch"]
    assert branch.startswith("retrain/")
    assert git("rev-parse", f"{branch}~1") == git("rev-parse", "main")
    names = set(git("diff", "--name-only", "main", branch).splitlines())
    assert {"params.yaml", "dvc.lock", "metrics/gate.json"} <= names
    assert "stray.py" not in names
    assert "temperature: 3.5" in git("show", f"{branch}:params.yaml")
    assert not list((checkout / "var" / "workspaces").glob("retrain-*"))
    parent, _ = tracked(checkout)
    assert parent.data.tags["commit"] == git("rev-parse", "main")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_no_process_behind(
    checkout: Path, first: Any, tmp_path: Path, number: signal.Signals
) -> None:
    pids = tmp_path / "pids"
    env = environment(TINY_SLEEP="prune", TINY_PIDS=str(pids))
    arguments = command(checkout, overrides=[f"prune.ffn_keep=0.0{number.value}"])
    process = subprocess.Popen(
        arguments, cwd=checkout, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # a shell's background job, as this test may be, is born deaf to the first of them
        preexec_fn=partial(signal.signal, number, signal.SIG_DFL),
    )  # fmt: skip
    try:
        children = _until(lambda: [int(p) for p in pids.read_text().split()])
        family = {p.pid for p in psutil.Process(process.pid).children(recursive=True)}
        assert set(children) <= family
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert not [pid for pid in family if _lives(pid)]
    parent, _ = tracked(checkout)
    assert parent.info.status == "KILLED"


def _until(look: Any) -> Any:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError("it did not come to that")


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# ---- DVC by itself


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = build(tmp_path / "checkout")
    monkeypatch.setenv("STILLROOM_HOME", str(root / "var"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    return root


def test_stages_come_from_dvc_yaml(alone: Path) -> None:
    assert tuple(dvc.stages(alone)) == STAGES
    assert dvc.changed(alone) == set(STAGES)


def test_reproduce_tells_running_from_up_to_date(alone: Path) -> None:
    said: list[str] = []
    assert dvc.reproduce("fetch", alone, on_line=said.append)
    assert [line.strip() for line in said] == ["fetch: at work"]
    assert not dvc.reproduce("fetch", alone)
    assert len(dvc.output_sha256(dvc.locked(alone)["fetch"])) == 64


def test_reproduce_raises_what_the_stage_recorded(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_FAIL", "fetch")
    with pytest.raises(DataError, match=r"data\.train: found nothing"):
        dvc.reproduce("fetch", alone)


def test_stage_without_a_word_is_quoted(alone: Path) -> None:
    (alone / "stage.py").write_text("raise SystemExit('out of paper')")
    with pytest.raises(StillroomError, match="out of paper"):
        dvc.reproduce("fetch", alone)


def test_error_on_our_side_ends_the_group(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_SLEEP", "fetch")
    monkeypatch.setenv("TINY_PIDS", str(tmp_path / "pids"))
    children: list[int] = []

    def broken(line: str) -> None:
        children.extend(_until(lambda: [int(p) for p in (tmp_path / "pids").read_text().split()]))
        raise ValueError("we are broken")

    with pytest.raises(ValueError, match="we are broken"):
        dvc.reproduce("fetch", alone, on_line=broken)
    assert len(children) == 2
    assert not [pid for pid in children if _lives(pid)]


def test_workspace_in_use_is_refused_at_once(alone: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from flows import dvc\n"
        "with dvc.held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(alone)], stdout=subprocess.PIPE, cwd=CHECKOUT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        said = f"process {process.pid}"
        with pytest.raises(UnavailableError, match=said) as caught, dvc.held(alone):
            pass
        assert caught.value.exit_code == 5
    finally:
        process.kill()
        process.communicate()
    with dvc.held(alone), dvc.held(alone):  # free again; and the same run may ask twice
        pass


def test_api_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "_OWN", [])
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{stack.free_port()}/api")
    with pytest.raises(UnavailableError, match="does not answer"):
        stack.prefect_api().wait()
