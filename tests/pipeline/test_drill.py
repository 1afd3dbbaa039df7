"""The drill: two real versions, forward, forward, back, and what may go wrong at night."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMOKE, Answer, Run, Shell

pytestmark = pytest.mark.slow
NAME = "drill"
ROLES = ("champion", "previous", "challenger")
FIRST = ("release.name=drill",)
SECOND = ("release.name=drill", "quantize.per_channel=false")


def status(shell: Shell) -> dict[str, Any]:
    found = shell.stillroom("status", "--model", NAME, "--history", "--json").json
    versions = {role: found[role] and found[role]["version"] for role in ROLES}
    return {**versions, "moves": found["moves"]}


def move(shell: Shell, *words: str) -> Answer:
    return shell.stillroom(*words, "--model", NAME, "--json")


def stored_model(shell: Shell, version: int) -> Path:
    """Where the registry keeps the bytes of a version."""
    code = (
        "from tasks.release.champion import champion_bundle; "
        f"print(champion_bundle({NAME!r}, {version})[0])"
    )
    return Path(shell("python", "-c", code).out.strip()) / "model.onnx"


def test_the_drill(smoke: Run, smoke_variant: Callable[..., Run]) -> None:
    shell = smoke.shell
    assert smoke_variant(*FIRST, promote=True).said["promoted"] is True
    assert smoke_variant(*SECOND).said["version"] == 2
    found = status(shell)
    assert (found["champion"], found["previous"], found["challenger"]) == (1, None, 2)

    assert move(shell, "promote").code == 0
    again = move(shell, "promote", "--version", "2")
    assert again.code == 0, "promoting the champion changes nothing and succeeds"
    found = status(shell)
    assert (found["champion"], found["previous"]) == (2, 1)

    assert move(shell, "rollback", "--reason", "drill").code == 0
    assert status(shell)["champion"] == 1

    # tonight's run makes the same bytes as the withdrawn version: it stays withdrawn
    tonight = smoke_variant(*SECOND, promote=True)
    assert tonight.said["version"] == 2
    assert tonight.said["promoted"] is False
    assert status(shell)["champion"] == 1

    nothing_left = move(shell, "rollback", "--reason", "again")
    assert nothing_left.code == 2
    assert "next:" in nothing_left.err
    assert status(shell)["champion"] == 1

    # a person may bring it back, but not if a byte of it has changed
    model = stored_model(shell, 2)
    sound = model.read_bytes()
    model.chmod(0o644)
    model.write_bytes(sound[:1000] + bytes([sound[1000] ^ 1]) + sound[1001:])
    moves = len(status(shell)["moves"])
    damaged = move(shell, "promote", "--version", "2", "--yes")
    assert damaged.code == 4, damaged.err
    assert status(shell)["champion"] == 1
    model.write_bytes(sound)
    assert move(shell, "promote", "--version", "2", "--yes").code == 0
    assert status(shell)["champion"] == 2
    assert len(status(shell)["moves"]) > moves

    # the way back is checked, too
    model = stored_model(shell, 1)
    sound = model.read_bytes()
    model.chmod(0o644)
    model.write_bytes(sound[:-1])
    assert move(shell, "rollback", "--reason", "damaged target").code == 4
    assert status(shell)["champion"] == 2
    model.write_bytes(sound)


def test_two_promotes_at_once(smoke: Run, smoke_variant: Callable[..., Run]) -> None:
    shell = smoke.shell
    smoke_variant(*FIRST)
    smoke_variant(*SECOND)
    before = status(shell)
    commands = [
        ["stillroom", "promote", "--model", NAME, "--version", str(n), "--yes", "--json"]
        for n in (1, 2)
    ]
    both = [subprocess.Popen(c, env=shell.env, stdout=subprocess.PIPE, text=True) for c in commands]
    said = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert all(process.returncode == 0 for process in both)
    after = status(shell)
    assert after["champion"] in (1, 2)
    new = after["moves"][: len(after["moves"]) - len(before["moves"])] or after["moves"]
    assert all(entry["state"] == "done" for entry in new), "no move is left open"
    assert len(said) == 2


@pytest.mark.alone
def test_predict_follows_the_champion_and_is_quick(smoke: Run) -> None:
    import time

    took = []
    for _ in range(3):
        started = time.monotonic()
        answer = smoke.shell.stillroom("predict", "where is my card?", "--model", "smoke", "--json")
        took.append(time.monotonic() - started)
        assert answer.code == 0, answer.err
    assert answer.json["version"] == smoke.shell.stillroom(
        "status", "--model", "smoke", "--json").json["champion"]["version"]  # fmt: skip
    labels = json.loads((smoke.workspace / "data/models/deploy/labels.json").read_text())
    assert answer.json["label"] in labels
    assert min(took) < 1.0


def test_anyone_may_load_the_champion_through_mlflow(smoke: Run) -> None:
    code = (
        "import mlflow; mlflow.set_tracking_uri(__import__('tasks.home').home.tracking_uri()); "
        "m = mlflow.pyfunc.load_model('models:/smoke@champion'); "
        "print(m.predict(['where is my card?'])['label'][0])"
    )
    done = smoke.shell("python", "-c", code)
    assert done.code == 0, done.err
    labels = json.loads((smoke.workspace / "data/models/deploy/labels.json").read_text())
    assert done.out.strip().splitlines()[-1] in labels


def test_smoke_is_a_model_of_its_own(smoke: Run) -> None:
    assert smoke.said["model"] == "smoke"
    assert SMOKE[2] == "smoke"
