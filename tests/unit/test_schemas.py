"""Every schema is one, accepts what the code writes, and refuses what breaks the contract."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from tasks.errors import BY_NAME, GateRefused, StillroomError
from tasks.release.gate import judge
from tasks.release.servable import SERVING_FILES
from tests.unit.test_cli import MOVE
from tests.unit.test_gate import GOOD, LIMITS
from tests.unit.test_model_card import MANIFEST
from tests.unit.test_pace import ALONE, JUDGED, OFF
from tests.unit.test_report import NOT_MEASURED, row, run

FOLDER = Path(__file__).parents[2] / "infra" / "schemas"
NAMES = ["gate", "summary", "stage", "runtime", "manifest", "status", "serving", "error",
         "move"]  # fmt: skip
SHA = "0f" * 32


def schema(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.schema.json").read_text("utf-8"))


def check(name: str, content: object) -> None:
    """As it stands on disk: through JSON, without NaN."""
    read = json.loads(json.dumps(content, allow_nan=False))
    Draft202012Validator(schema(name)).validate(read)


def manifest() -> dict:
    return copy.deepcopy(MANIFEST) | {"files": dict.fromkeys(SERVING_FILES, SHA)}


VERSION = {"version": 2, "artifact_sha256": SHA, "since": "2026-11-21T03:00:00Z"}
GOOD_FILES = {
    "gate": judge(GOOD, LIMITS).as_dict(),
    "summary": run(),
    "stage": {"stage": "prune", "accuracy": 0.56, "heads": {"0": 6}},
    "runtime": {
        "stage": "prune",
        "started_at": "2026-11-21T03:00:00+00:00",
        "work_s": 3.2,
        "startup_s": 2.1,
        "peak_memory_bytes": 10**9,
        "cpu_s": 4.0,
        "energy_kwh": None,
        "energy_method": "not measured",
        "machine": {"cpus": 2},
    },
    "manifest": manifest(),
    "status": {"model": "banking77", "champion": VERSION, "previous": None, "challenger": None},
    "serving": {
        "format": 1,
        "problem": "classification",
        "runtime": "onnxruntime",
        "model": "model.onnx",
        "precision": "int8",
        "profile": "cpu-avx2",
        "max_length": 64,
        "pad_id": 0,
        "pad_token": "[PAD]",
    },
    "move": replace(MOVE, pace=JUDGED.as_dict()).as_dict(),
    "error": GateRefused("no", next_command="stillroom report").as_dict(),
}


def test_there_is_a_schema_for_each_name():
    assert sorted(GOOD_FILES) == sorted(NAMES)
    assert {f"{name}.schema.json" for name in NAMES} <= {path.name for path in FOLDER.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one_and_accepts_a_good_file(name):
    Draft202012Validator.check_schema(schema(name))
    assert schema(name)["$id"] == f"{name}.schema.json"
    check(name, GOOD_FILES[name])


@pytest.mark.parametrize("name", NAMES)
def test_every_required_key_is_required(name):
    for key in schema(name)["required"]:
        content = copy.deepcopy(GOOD_FILES[name])
        del content[key]
        with pytest.raises(ValidationError, match="is a required property"):
            check(name, content)


@pytest.mark.parametrize("name", ["gate", "summary", "manifest", "status", "error", "move"])
def test_closed_contracts_refuse_unknown_keys(name):
    with pytest.raises(ValidationError, match="unexpected"):
        check(name, GOOD_FILES[name] | {"surprise": 1})


@pytest.mark.parametrize("name", ["summary", "manifest"])
def test_the_verdict_is_the_same_contract_everywhere(name):
    body = {key: value for key, value in schema("gate").items() if not key.startswith("$")}
    embedded = schema(name)["$defs"]["gate"]
    assert embedded == {key: body[key] for key in embedded}


def test_a_verdict_on_what_is_not_a_figure_is_valid():
    check("gate", judge(replace(GOOD, drop=math.nan, detectable_drop=math.nan), LIMITS).as_dict())


@pytest.mark.parametrize("pace", [None, ALONE.as_dict(), OFF.as_dict()])
def test_a_move_without_a_measurement_a_champion_or_a_limit_is_valid(pace):
    check("move", replace(MOVE, pace=pace).as_dict())


def test_a_run_without_energy_or_latency_is_valid():
    check("summary", run(energy=False))
    check("summary", run(linear=row("linear", math.nan, 10, None, NOT_MEASURED)))


def test_a_summary_starts_with_the_teacher_and_has_one_candidate():
    for stages in (run()["stages"][1:], run()["stages"][:-1], run()["stages"] * 2):
        with pytest.raises(ValidationError):
            check("summary", run() | {"stages": stages})


def test_a_language_model_is_judged_by_perplexity():
    content = run() | {"primary": "perplexity"}
    for line in content["stages"]:
        line["quality"] = {"perplexity": 12.3}
    check("summary", content)
    content["stages"][0]["quality"] = {}
    with pytest.raises(ValidationError):
        check("summary", content)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("gate", ("artifact_sha256",), "short"),
        ("gate", ("checks",), []),
        ("gate", ("checks", 0, "kind"), "about"),
        ("gate", ("passed",), None),
        ("summary", ("n",), 0),
        ("summary", ("ratios", "quality_retained_ci95"), [0.9]),
        ("summary", ("stages", 0, "energy_method"), "guessed"),
        ("summary", ("stages", 0, "latency_ms", "p50"), None),
        ("summary", ("stages", 0, "file_bytes"), 1.5),
        ("runtime", ("work_s",), -1),
        ("manifest", ("format",), 2),
        ("manifest", ("files", "model.onnx"), "none"),
        ("status", ("champion", "since"), 5),
        ("serving", ("max_length",), 0),
        ("error", ("exit_code",), 0),
        ("error", ("kind",), "KeyError"),
    ],
)
def test_a_wrong_value_is_refused(name, path, value):
    content = copy.deepcopy(GOOD_FILES[name])
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        check(name, content)


def test_the_manifest_names_every_servable_file():
    assert sorted(schema("manifest")["properties"]["files"]["required"]) == sorted(SERVING_FILES)


def test_every_error_of_the_tree_has_its_kind():
    kinds = schema("error")["properties"]["kind"]["enum"]
    assert sorted(kinds) == sorted([*BY_NAME, StillroomError.__name__])
    for error in [*BY_NAME.values(), StillroomError]:
        check("error", error("message").as_dict())


def test_status_with_history():
    check("status", GOOD_FILES["status"] | {"moves": [{"from": 1, "to": 2}]})
