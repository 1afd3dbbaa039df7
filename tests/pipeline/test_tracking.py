"""What the tracker writes, read back through MLflow's own client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from flows.follow import Following
from tasks.stage_files import read_rows
from tasks.tracking import Tracker, clean, flatten, flatten_numbers

PARAMS = {"seed": 1, "prune": {"enabled": True, "layers": [0, 1]}}
TAGS = {"commit": "abc", "dirty": "false", "hardware_profile": "cpu-avx2"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests here: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow/mlflow.db"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path / "var"))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    lock = {"stages": {"prune": {"params": {"params.yaml": {"prune.enabled": True}}}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    write(tmp_path, "prune", accuracy=0.9)
    return tmp_path


def write(root: Path, stage: str, **numbers: float) -> None:
    (root / "metrics").mkdir(exist_ok=True)
    (root / "metrics" / f"{stage}.json").write_text(json.dumps({"stage": stage, **numbers}))
    runtime = {"stage": stage, "started_at": "2026-01-01T00:00:00+00:00", "work_s": 2.0}
    (root / "metrics" / f"{stage}.runtime.json").write_text(json.dumps(runtime))


def opened(root: Path, store: str, experiment: str) -> Tracker:
    tracker = Tracker(root, experiment=experiment, uri=store)
    tracker.open(name="checkout", params=PARAMS, tags=TAGS)
    return tracker


def stages(store: str, experiment: str) -> list[Any]:
    client = MlflowClient(tracking_uri=store)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    return [run for run in runs if "stage" in run.data.tags]


def test_live_stage(root: Path, store: str) -> None:
    tracker = opened(root, store, "live")
    tracker.begin("prune")
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    tracker.curve("prune", rows)
    assert tracker.run_id()
    (running,) = stages(store, "live")
    assert running.info.status == "RUNNING"
    assert running.data.metrics["curve.loss"] == 1.0, "the curve is to be seen while it grows"
    rows.append({"step": 3, "loss": 0.5})
    history = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "metrics" / "prune.history.jsonl").write_text(history)
    tracker.end("prune", "1" * 64, ran=True)
    assert tracker.close("FINISHED", tags={"verdict": "passed"}) == []
    (done,) = stages(store, "live")
    client = MlflowClient(tracking_uri=store)
    points = client.get_metric_history(done.info.run_id, "curve.loss")
    assert [(p.step, p.value) for p in points] == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert done.data.params == {"prune.enabled": "true"}
    assert done.data.metrics["runtime.work_s"] == 2.0
    parent = client.get_run(done.data.tags["mlflow.parentRunId"])
    assert parent.data.params == {"seed": "1", "prune.enabled": "true", "prune.layers": "[0, 1]"}
    assert parent.data.tags["stage.prune.state"] == "ran"
    assert parent.data.tags["verdict"] == "passed"
    assert parent.data.metrics["prune.accuracy"] == 0.9
    assert {**parent.data.tags, **TAGS} == parent.data.tags


def test_each_round_of_pruning_is_seen_at_once_with_its_map(root: Path, store: str) -> None:
    tracker, picture = opened(root, store, "rounds"), root / "metrics" / "prune.png"
    tracker.begin("prune")
    picture.write_bytes(b"one round")
    tracker.curve("prune", [{"step": 1, "eval_loss": 2.0, "sharpness": 0.1, "round": 1}])
    assert tracker.run_id(), "what was told is written by now"
    (running,) = stages(store, "rounds")
    assert running.data.metrics["curve.sharpness"] == 0.1
    client, room = MlflowClient(tracking_uri=store), root / "seen"
    room.mkdir()
    found = client.download_artifacts(running.info.run_id, "prune.png", str(room))
    assert Path(found).read_bytes() == b"one round", "before the stage has ended"
    picture.write_bytes(b"two rounds")
    tracker.curve("prune", [{"step": 2, "eval_loss": 1.9, "sharpness": 0.2, "round": 2}])
    assert tracker.run_id()
    found = client.download_artifacts(running.info.run_id, "prune.png", str(room))
    assert Path(found).read_bytes() == b"two rounds"


def test_up_to_date_stage_is_linked_and_recorded_once(root: Path, store: str) -> None:
    for _ in range(2):
        tracker = opened(root, store, "linked")
        tracker.end("prune", "2" * 64, ran=False)
        assert tracker.close("FINISHED") == []
    (only,) = stages(store, "linked")
    assert only.data.tags["recorded"] == "afterwards"
    assert only.info.end_time - only.info.start_time == 2000
    tracker = opened(root, store, "linked")
    tracker.end("prune", "3" * 64, ran=False)
    tracker.close("FINISHED")
    assert len(stages(store, "linked")) == 2


def test_link_crosses_experiments(root: Path, store: str) -> None:
    for experiment in ("one", "two"):
        tracker = opened(root, store, experiment)
        tracker.end("prune", "4" * 64, ran=False)
        assert tracker.close("FINISHED") == []
    assert (len(stages(store, "one")), len(stages(store, "two"))) == (1, 0)


def test_every_opening_of_test_is_counted(root: Path, store: str) -> None:
    write(root, "validate", accuracy=0.8)
    for outputs, ran in (("5" * 64, True), ("5" * 64, False), ("6" * 64, True)):
        tracker = opened(root, store, "counted")
        if ran:
            tracker.begin("validate")
        tracker.end("validate", outputs, ran=ran)
        assert tracker.close("FINISHED") == []
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("counted")
    assert experiment is not None
    assert experiment.tags["test_openings"] == "2"


def test_failed_stage(root: Path, store: str) -> None:
    tracker = opened(root, store, "failed")
    tracker.begin("prune")
    tracker.fail("prune", "no such layer")
    assert tracker.close("FAILED") == []
    (failed,) = stages(store, "failed")
    assert (failed.info.status, failed.data.tags["error"]) == ("FAILED", "no such layer")


def test_store_that_is_away_is_reported_once_and_stops_nothing(root: Path) -> None:
    (root / "blocked").write_text("a file where a folder is wanted")
    tracker = opened(root, f"sqlite:///{root}/blocked/mlflow.db", "away")
    tracker.begin("prune")
    tracker.end("prune", "7" * 64, ran=True)
    assert tracker.run_id() is None
    assert len(tracker.close("FINISHED")) == 1


def test_following_hands_on_new_rows_and_not_another_runs(tmp_path: Path) -> None:
    path, seen = tmp_path / "history.jsonl", []
    path.write_text('{"step": 9}\n')
    with Following(path, seen.extend):
        path.write_text('{"step": 1}\n')
        path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [row["step"] for row in seen] == [1, 2]
    untouched: list[Any] = []
    with Following(path, untouched.extend):
        pass
    assert untouched == []


def test_names_and_values() -> None:
    assert clean("drop (points)%") == "drop _points__"
    assert flatten({"a": {"b": None, "c": "x"}}) == {"a.b": "null", "a.c": "x"}
    numbers = flatten_numbers({"a": {"b": 1, "c": True, "d": "x", "e": [1]}, "f": 0.5})
    assert numbers == {"a.b": 1.0, "a.c": 1.0, "f": 0.5}
    assert read_rows(Path("nowhere")) == []
