"""Promotion times the candidate beside the champion, on real bundles and a real registry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tasks.errors import GateRefused
from tasks.release import registry
from tasks.release.champion import champion_bundle
from tasks.release.history import Registered
from tasks.release.servable import Servable
from tests.tiny_bundle import (
    LABEL,
    REPOSITORY,
    TEXT,
    flip_byte,
    make_bundle,
    register_tiny,
    registry_home,  # noqa: F401
    stillroom,
    template_store,  # noqa: F401
)

NAME = "tiny"
SLOW = 24
"""Layers: several times the time of none."""
pytestmark = pytest.mark.usefixtures("registry_home")


def put(tmp_path: Path, seed: int, *, layers: int = 0, limit: float | None = 1.5) -> Registered:
    """Register a bundle as a run would, with the limit of its params."""
    release = {} if limit is None else {"promotion": {"max_slowdown": limit}}
    return register_tiny(tmp_path, seed, release=release, name=NAME, layers=layers)


def champion() -> int | None:
    found = registry.status(NAME)["champion"]
    return None if found is None else int(found["version"])


def log() -> list[dict[str, Any]]:
    moves: list[dict[str, Any]] = registry.status(NAME, history=True)["moves"]
    return moves


def test_layers_change_the_time_and_not_the_answer(tmp_path: Path) -> None:
    for layers in (0, SLOW):
        bundle = make_bundle(tmp_path / str(layers), layers=layers)
        assert Servable(bundle).predict([TEXT])[0].label == LABEL


def test_a_slower_version_is_refused_and_the_limit_is_the_versions_own(tmp_path: Path) -> None:
    put(tmp_path, 1)
    first = registry.promote(NAME)
    assert first.pace is not None
    assert (first.pace["outcome"], first.pace["ratio"]) == ("not compared", None)
    assert first.pace["candidate_ms"]["p50"] > 0
    put(tmp_path, 2, layers=SLOW)
    with pytest.raises(GateRefused, match=r"expected at most 1\.5") as caught:
        registry.promote(NAME)
    assert "--version 2 --max-slowdown" in str(caught.value.next_command)
    assert champion() == 1
    assert len(log()) == 1, "a refusal is no move"

    # the same bytes, registered again by a run whose params have no limit
    assert put(tmp_path, 2, limit=0.0).created is False
    moved = registry.promote(NAME)
    assert (moved.source, moved.target) == (1, 2)
    assert moved.pace is not None
    assert (moved.pace["outcome"], moved.pace["limit"]) == ("no limit", None)
    assert moved.pace["ratio"]["q1"] > 1.5
    assert log()[-1]["pace"] == moved.pace, "the log keeps what was measured"

    # the other way round, and back: a rollback does not measure
    put(tmp_path, 3)
    quicker = registry.promote(NAME)
    assert quicker.pace is not None
    assert quicker.pace["outcome"] == "within"
    assert quicker.pace["ratio"]["q3"] < 1.0
    assert registry.rollback(NAME, reason="x").pace is None
    assert champion() == 2


def test_a_version_without_a_recorded_limit_is_measured_and_held_to_none(tmp_path: Path) -> None:
    put(tmp_path, 1, limit=None)
    registry.promote(NAME)
    put(tmp_path, 2, layers=SLOW, limit=None)
    moved = registry.promote(NAME)
    assert moved.pace is not None
    assert moved.pace["outcome"] == "no limit"
    assert moved.pace["ratio"]["median"] > 1.5


def test_a_damaged_champion_does_not_stand_in_the_way(tmp_path: Path) -> None:
    put(tmp_path, 1)
    registry.promote(NAME)
    put(tmp_path, 2, layers=SLOW)
    flip_byte(champion_bundle(NAME)[0] / "model.onnx")
    moved = registry.promote(NAME)
    assert moved.target == 2
    assert moved.pace is not None
    assert (moved.pace["outcome"], moved.pace["against"]) == ("not compared", 1)


def test_the_command_line_refuses_with_3_and_a_person_may_accept_it(tmp_path: Path) -> None:
    schema = json.loads((REPOSITORY / "infra" / "schemas" / "move.schema.json").read_text())
    put(tmp_path, 1)
    registry.promote(NAME)
    put(tmp_path, 2, layers=SLOW)
    refused = stillroom("promote", "--model", NAME, "--json")
    assert refused.returncode == 3, refused.stderr
    assert refused.stdout == ""
    for words in ("found", "expected at most 1.5", "next: stillroom promote"):
        assert words in refused.stderr
    assert champion() == 1
    command = ["--model", NAME, "--version", "2", "--max-slowdown", "100"]
    done = stillroom("promote", *command, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    jsonschema.validate(said, schema)
    assert said["pace"]["limit"] == 100
    assert said["pace"]["ratio"]["median"] > 1.5
    back = stillroom("rollback", "--model", NAME, "--reason", "slow", "--json")
    jsonschema.validate(json.loads(back.stdout), schema)
    told = stillroom("promote", *command, "--yes")
    assert "times version 1's" in told.stdout


def test_a_champion_that_changes_meanwhile_is_compared_with_anew(tmp_path: Path) -> None:
    """Another command moves the alias between the measurement and the lock, as it may."""
    put(tmp_path, 1)
    registry.promote(NAME)
    put(tmp_path, 2)
    put(tmp_path, 3)
    script = """
import sys
from tasks.release import pace, registry
compare, others = pace.compare, [2]
def meanwhile(*folders):
    found = compare(*folders)
    if others:
        registry.promote("tiny", version=others.pop())
    return found
pace.compare = meanwhile
move = registry.promote("tiny", version=3)
print(move.source, move.target, move.pace["against"])
print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["2", "3", "2", "False"]
    assert [(move["from"], move["to"]) for move in log()] == [(None, 1), (1, 2), (2, 3)]
