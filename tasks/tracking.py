"""What a pipeline run leaves in MLflow, written from the files that the stages left.

    one run a pipeline run     params, tags, test openings, artifacts; the numbers of all stages
      └─ one run a stage       when it ran: its params, data set, metrics, curve, time

A stage that was up to date is linked to the run that made its outputs (tag
``stage.<name>.run_id``); where there is none, because it ran under a bare ``dvc
repro``, it is recorded now, once. So a later run also fills what an MLflow that
was down has missed.

All of it happens on one thread, in order, while the stages run. What fails there
is kept for the end: numbers that cannot be recorded are no reason to lose a model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks import home
from tasks.stage_files import parquet_facts, read_json, read_rows, stage_params

OPENS_TEST = "validate"
"""The stage whose every execution is an opening of the test split."""
ARTIFACTS = ("params.yaml", "dvc.lock", "metrics/gate.json")
BATCH = {"metrics": 500, "params": 100, "tags": 100}
"""Most of each that one `log_batch` takes, metrics well below the limit of 1000."""
CLOSE_S = 120.0
"""How long the end of a run waits for what is still to be written."""


class Tracker:
    """One pipeline run in MLflow.

    Args:
        root: workspace whose files are recorded.
        experiment: name; one per registered model.
        uri: of the store; by default `tasks.home.tracking_uri`.
    """

    def __init__(self, root: Path, *, experiment: str, uri: str | None = None) -> None:
        self._root, self._experiment = root, experiment
        self._uri = uri or home.tracking_uri()
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._errors: list[str] = []
        self._children: dict[str, str] = {}
        self._drawn: dict[str, int] = {}
        self._common: dict[str, str] = {}
        self._run: Future[str] = Future()
        self._client: Any = None
        self._experiment_id = ""
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def open(self, *, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin the pipeline's run.

        Args:
            name: shown in MLflow.
            params: resolved, nested.
            tags: facts that all runs of this pipeline carry.
        """
        self._common = {key: str(value) for key, value in tags.items()}
        self._todo.put(lambda: self._open(name, flatten(params)))

    def begin(self, stage: str) -> None:
        """A stage has really started."""
        started = _now_ms()
        self._todo.put(lambda: self._begin(stage, started))

    def curve(self, stage: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Further rows of a training stage's history."""
        stamp = _now_ms()
        self._todo.put(lambda: self._curve(stage, list(rows), stamp))

    def end(self, stage: str, outputs_sha256: str, *, ran: bool) -> None:
        """A stage is up to date.

        Args:
            outputs_sha256: over its outputs in ``dvc.lock``; the key that later runs link by.
            ran: False when it was up to date before, or came out of DVC's cache.
        """
        self._todo.put(lambda: self._end(stage, outputs_sha256, ran))

    def fail(self, stage: str, message: str) -> None:
        """A stage that had started has failed."""
        self._todo.put(lambda: self._fail(stage, message))

    def run_id(self) -> str | None:
        """Wait until all that was asked for is written; the run's id, None where MLflow failed."""
        settled = threading.Event()
        self._todo.put(settled.set)
        settled.wait(CLOSE_S)
        done = self._run.done() and self._run.exception() is None
        return self._run.result() if done else None

    def close(self, status: str, *, tags: Mapping[str, Any] | None = None) -> list[str]:
        """Write artifacts and end the run.

        Args:
            status: ``FINISHED``, ``FAILED`` or ``KILLED``.
            tags: what came of it.

        Returns:
            What could not be recorded; empty when all was.
        """
        self._todo.put(lambda: self._close(status, {k: str(v) for k, v in (tags or {}).items()}))
        self._todo.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._errors.append(f"{self._uri}: still writing after {CLOSE_S:.0f} s")
        return list(dict.fromkeys(self._errors))

    # ---- below here: on the thread

    def _work(self) -> None:
        while (step := self._todo.get()) is not None:
            try:
                step()
            except Exception as error:
                self._errors.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
                if not self._run.done():
                    self._run.set_exception(error)

    def _open(self, name: str, params: Mapping[str, str]) -> None:
        self._client = connect(self._uri)
        self._experiment_id = experiment_id(self._client, self._experiment, self._uri)
        run = self._create(name, _now_ms(), {"params_sha256": _digest(params)})
        self._write(run, params=params)
        self._run.set_result(run)

    def _create(self, name: str, started: int, tags: Mapping[str, str]) -> str:
        created = self._client.create_run(
            self._experiment_id, start_time=started, run_name=name, tags={**self._common, **tags}
        )
        return str(created.info.run_id)

    def _begin(self, stage: str, started: int) -> None:
        parent = self._parent()
        if parent is None:
            return
        tags = {"mlflow.parentRunId": parent, "stage": stage}
        self._children[stage] = self._create(stage, started, tags)
        self._drawn[stage] = 0

    def _curve(self, stage: str, rows: Sequence[Mapping[str, Any]], stamp: int) -> None:
        child = self._children.get(stage)
        if child is None:
            return
        points = [
            (f"curve.{key}", float(value), stamp, int(row["step"]))
            for row in rows
            for key, value in row.items()
            if key != "step" and _is_number(value)
        ]
        self._drawn[stage] = self._drawn.get(stage, 0) + len(rows)
        self._write(child, points=points)
        picture = self._root / "metrics" / f"{stage}.png"
        if picture.exists() and any("round" in row for row in rows):  # of what was cut, at once
            self._client.log_artifact(child, str(picture))

    def _end(self, stage: str, outputs: str, ran: bool) -> None:
        parent = self._parent()
        if parent is None:
            return
        child = self._children.get(stage) if ran else self._producer(stage, outputs)
        if child is None:
            child = self._record(stage, parent, outputs, afterwards=not ran)
        elif ran:
            self._fill(stage, child, outputs)
        metrics = read_json(self._root / "metrics" / f"{stage}.json")
        self._client.set_tag(parent, f"stage.{stage}.run_id", child)
        self._client.set_tag(parent, f"stage.{stage}.state", "ran" if ran else "up to date")
        self._write(parent, metrics=prefixed(stage, flatten_numbers(metrics)))
        if stage == OPENS_TEST:
            self._count_openings(parent)

    def _record(self, stage: str, parent: str, outputs: str, *, afterwards: bool) -> str:
        """Make the run of a stage that ran unseen."""
        runtime = read_json(self._root / "metrics" / f"{stage}.runtime.json")
        started = _now_ms()
        with contextlib.suppress(KeyError, ValueError):
            started = int(datetime.fromisoformat(runtime["started_at"]).timestamp() * 1000)
        self._begin(stage, started)
        child = self._children[stage]
        if afterwards:
            self._client.set_tag(child, "recorded", "afterwards")
        self._fill(stage, child, outputs, end=started + int(1000 * runtime.get("work_s", 0)))
        return child

    def _fill(self, stage: str, child: str, outputs: str, *, end: int | None = None) -> None:
        """Everything about a stage that is known once it is done."""
        folder = self._root / "metrics"
        rows = read_rows(folder / f"{stage}.history.jsonl")
        self._curve(stage, rows[self._drawn.get(stage, 0) :], _now_ms())
        runtime = flatten_numbers(read_json(folder / f"{stage}.runtime.json"))
        numbers = flatten_numbers(read_json(folder / f"{stage}.json"))
        params = flatten(stage_params(self._root, stage))
        self._write(child, metrics={**numbers, **prefixed("runtime", runtime)}, params=params)
        self._log_data(child)
        for name in (f"{stage}.json", f"{stage}.runtime.json", f"{stage}.png"):
            if (folder / name).exists():
                self._client.log_artifact(child, str(folder / name))
        self._client.set_tag(child, "outputs_sha256", outputs)
        self._client.set_terminated(child, "FINISHED", end_time=end)

    def _fail(self, stage: str, message: str) -> None:
        if (child := self._children.get(stage)) is not None:
            self._client.set_tag(child, "error", message[:4000])
            self._client.set_terminated(child, "FAILED")

    def _close(self, status: str, tags: Mapping[str, str]) -> None:
        parent = self._parent()
        if parent is None:
            return
        self._log_data(parent)
        lock = self._root / "dvc.lock"
        if lock.exists():
            tags = {**tags, "dvc_lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest()}
        ratios = read_json(self._root / "reports" / "summary.json").get("ratios", {})
        self._write(parent, tags=tags, metrics=prefixed("ratios", flatten_numbers(ratios)))
        for name in ARTIFACTS:
            if (self._root / name).exists():
                self._client.log_artifact(parent, str(self._root / name))
        if (self._root / "reports").is_dir():
            self._client.log_artifacts(parent, str(self._root / "reports"), "reports")
        self._client.set_terminated(parent, status)

    def _parent(self) -> str | None:
        """The pipeline's run; None where it could not be opened, which is on record."""
        return None if self._run.exception() else self._run.result()

    def _producer(self, stage: str, outputs: str) -> str | None:
        """The latest run, in any experiment, that ended with these outputs."""
        places = [e.experiment_id for e in self._client.search_experiments()]
        found = self._client.search_runs(
            places,
            f"tags.stage = '{stage}' and tags.outputs_sha256 = '{outputs}'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        return str(found[0].info.run_id) if found else None

    def _count_openings(self, parent: str) -> None:
        """Say on experiment and run how often test has been opened for this model."""
        count, token = 0, None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], f"tags.stage = '{OPENS_TEST}'", page_token=token
            )
            count, token = count + len(page), page.token
            if not token:
                break
        self._client.set_experiment_tag(self._experiment_id, "test_openings", str(count))
        self._write(parent, metrics={"test_openings": float(count)})

    def _log_data(self, run: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for path in sorted((self._root / "data" / "prepared").glob("*.parquet")):
            rows, digest = parquet_facts(path)
            dataset = Dataset(
                name=f"{self._experiment}-{path.stem}",
                digest=digest[:36],
                source_type="local",
                source=json.dumps({"uri": f"data/prepared/{path.name}", "sha256": digest}),
                profile=json.dumps({"num_rows": rows}),
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", path.stem)]))
        if inputs:
            self._client.log_inputs(run, datasets=inputs)

    def _write(
        self,
        run: str,
        *,
        metrics: Mapping[str, float] | None = None,
        points: Sequence[tuple[str, float, int, int]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """`log_batch` in pieces of the size that it takes."""
        from mlflow.entities import Metric, Param, RunTag

        now = _now_ms()
        everything: dict[str, list[Any]] = {
            "metrics": [
                *(Metric(clean(k), v, now, 0) for k, v in (metrics or {}).items()),
                *(Metric(clean(k), v, stamp, step) for k, v, stamp, step in points),
            ],
            "params": [Param(clean(k), v[:6000]) for k, v in (params or {}).items()],
            "tags": [RunTag(k, v) for k, v in (tags or {}).items()],
        }
        for kind, entities in everything.items():
            size = BATCH[kind]
            for start in range(0, len(entities), size):
                self._client.log_batch(run, **{kind: entities[start : start + size]})


def connect(uri: str) -> Any:
    """An MLflow client for a store; makes the folder of an sqlite file."""
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: Any, name: str, uri: str) -> str:
    """Find or make an experiment; with the sqlite store its artifacts lie in `home`."""
    from mlflow.exceptions import MlflowException

    place = (home.home() / "mlflow" / "artifacts").as_uri() if uri.startswith("sqlite:") else None
    for _ in range(2):
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException:  # another run was faster: look again
            time.sleep(0.2)
    return str(client.get_experiment_by_name(name).experiment_id)


def count_opening(experiment: str, name: str) -> None:
    """Record that something beside `validate` has opened test, so that it is counted with them."""
    uri = home.tracking_uri()
    client = connect(uri)
    place = experiment_id(client, experiment, uri)
    run = client.create_run(place, run_name=name, tags={"stage": OPENS_TEST, "opened_by": name})
    client.set_terminated(run.info.run_id)


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mapping → ``section.key`` to text."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def flatten_numbers(content: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested mapping → ``section.key`` to its numbers; true is 1, false 0, no text."""
    flat: dict[str, float] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten_numbers(value, f"{prefix}{key}.")
        elif isinstance(value, bool) or _is_number(value):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def prefixed(prefix: str, content: Mapping[str, float]) -> dict[str, float]:
    """The same numbers under longer names."""
    return {f"{prefix}.{key}": value for key, value in content.items()}


def clean(name: str) -> str:
    """A name that MLflow takes: letters, digits, and ``_ - . space / :``, at most 250 of them."""
    return re.sub(r"[^\w\-. /:]", "_", name)[:250]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _digest(params: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()


def _now_ms() -> int:
    return int(time.time() * 1000)
