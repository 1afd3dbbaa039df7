"""What every stage leaves behind: metrics when it is done, one error when it is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from tasks.stage import curve
from tasks.training.trainer import ABANDONED_S, claim, discard_checkpoints, scratch

ROOT = Path(__file__).resolve().parents[2]
STAGE = """
import sys
from pathlib import Path
from tasks.errors import DataError, GateRefused
from tasks.stage import run

def main(params):
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/half").write_text("written")
    if "fail" in sys.argv:
        raise DataError("data.train: found nothing", next_command="ls")
    if "refuse" in sys.argv:
        raise GateRefused("gate.baseline_floor: too low")
    if "crash" in sys.argv:
        raise RuntimeError("a fault of ours")
    if "disk" in sys.argv:
        raise OSError(28, "No space left on device", "data/raw/half")
    return {"rows": 3, "loss": [float("nan")], "runtime": {"resumed_from": 7}}

run("fetch", main)
"""


@pytest.fixture
def there(tmp_path: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "stage.py").write_text(STAGE)
    return tmp_path


def start(there: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "stage.py", *words], cwd=there, text=True,
                          capture_output=True, check=False)  # fmt: skip


def read(there: Path, name: str) -> dict[str, object]:
    return json.loads((there / "metrics" / name).read_text())


def test_a_stage_that_is_done(there: Path) -> None:
    (there / "metrics").mkdir()
    (there / "metrics/fetch.error.json").write_text("{}")
    done = start(there)
    assert done.returncode == 0, done.stderr
    assert "fetch: done in" in done.stdout
    assert read(there, "fetch.json") == {"stage": "fetch", "rows": 3, "loss": [None]}
    runtime = read(there, "fetch.runtime.json")
    schema = json.loads((ROOT / "infra/schemas/runtime.schema.json").read_text())
    jsonschema.validate(runtime, schema)
    assert runtime["resumed_from"] == 7
    assert not (there / "metrics/fetch.error.json").exists()


def test_a_stage_that_failed_leaves_its_reason_and_nothing_else(there: Path) -> None:
    done = start(there, "fail")
    assert done.returncode == 2
    assert done.stderr.strip() == "fetch: data.train: found nothing\n  next: ls"
    error = read(there, "fetch.error.json")
    schema = json.loads((ROOT / "infra/schemas/error.schema.json").read_text())
    jsonschema.validate(error, schema)
    assert error["exit_code"] == 2
    assert not (there / "data/raw").exists(), "half-written outputs are gone"
    assert not (there / "metrics/fetch.json").exists()


def test_a_link_into_the_cache_is_replaced_not_written_through(there: Path) -> None:
    (there / "data/raw").mkdir(parents=True)
    cached = there / "cached"
    cached.write_text("precious")
    (there / "data/raw/half").hardlink_to(cached)
    assert start(there).returncode == 0
    assert cached.read_text() == "precious"
    assert (there / "data/raw/half").read_text() == "written"


def test_what_a_limit_refused_is_kept_for_a_look(there: Path) -> None:
    assert start(there, "refuse").returncode == 3
    assert (there / "data/raw/half").exists()


def test_a_full_disk_is_no_traceback(there: Path) -> None:
    done = start(there, "disk")
    assert done.returncode == 5
    assert "data/raw/half: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fault_of_ours_is_not_dressed_up(there: Path) -> None:
    done = start(there, "crash")
    assert done.returncode == 1
    assert "RuntimeError: a fault of ours" in done.stderr


def test_a_curve_has_a_line_for_each_look_at_validation() -> None:
    rows = [
        {"step": 20, "loss": 2.0},
        {"step": 40, "loss": 1.0},
        {"step": 50, "eval_loss": 1.5, "eval_accuracy": 0.5},
        {"step": 60, "loss": 0.5},
        {"step": 100, "eval_loss": 0.75, "eval_accuracy": 0.75},
    ]
    assert curve(rows) == [(50, 1.0, 1.5, 0.5), (100, 0.5, 0.75, 0.75)]


def test_wrong_params_are_refused_before_the_stage_begins(there: Path) -> None:
    params = yaml.safe_load((there / "params.yaml").read_text())
    params["seed"] = "thirteen"
    (there / "params.yaml").write_text(yaml.safe_dump(params))
    done = start(there)
    assert done.returncode == 2
    assert "seed: found 'thirteen', expected integer" in done.stderr
    assert not (there / "data").exists()


def test_checkpoints_of_another_run_stay_while_it_may_be_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path / "home"))
    Path("dvc.yaml").write_text("stages: {prune: {params: [seed], deps: [code.py]}}\n")
    Path("params.yaml").write_text("seed: 1\n")
    Path("code.py").write_text("A = 1\n")
    own = scratch("prune")
    rooms = {name: own.with_name(name) for name in (own.name, "recent", "resumed", "abandoned")}
    for room in rooms.values():
        (room / "run").mkdir(parents=True)
        (room / "run" / "state").write_text("x")
    long_ago = time.time() - ABANDONED_S - 60
    for path in ("abandoned/run/state", "abandoned/run", "abandoned", "resumed/run", "resumed"):
        os.utime(own.parent / path, (long_ago, long_ago))
    discard_checkpoints("prune")
    assert sorted(room.name for room in own.parent.iterdir()) == ["recent", "resumed"]


def test_two_runs_of_the_same_params_do_not_share_their_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path / "home"))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        Path("dvc.yaml").write_text("stages: {prune: {params: [seed]}}\n")
        Path("params.yaml").write_text("seed: 1\n")
        scratch("prune")
    monkeypatch.chdir(tmp_path / "one")
    own = scratch("prune")
    assert sorted(room.name for room in own.parent.iterdir()) == [own.name, f"{own.name}-1"]
    Path("params.yaml").write_text("seed: 2\n")  # while it trains
    assert scratch("prune") == own
    discard_checkpoints("prune")
    assert [room.name for room in own.parent.iterdir()] == [f"{own.name}-1"]
    again, lock = claim(own)
    assert again == own, "free again, for who goes on where a run was cut off"
    lock.release()
    monkeypatch.chdir(tmp_path / "other")
    discard_checkpoints("prune")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such call here")
def test_cores_are_those_that_the_process_may_use() -> None:
    source = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    source += "from tasks.stage import machine; print(machine()['cores'])"
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, text=True, check=True,
                          capture_output=True)  # fmt: skip
    assert done.stdout == "1\n"
