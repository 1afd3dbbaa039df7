"""`stillroom predict`: right, quick, and light."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.release import registry
from tasks.release.champion import champion_bundle
from tests.tiny_bundle import (
    LABEL,
    LABELS,
    TEXT,
    flip_byte,
    make_bundle,
    registry_home,  # noqa: F401
    stillroom,
    template_store,  # noqa: F401
)

NAME = "tiny"
LIMIT_S = 1.0
HEAVY = ("torch", "transformers", "mlflow", "prefect", "pandas", "rich.table", "tasks.params")


@pytest.fixture
def live(registry_home: Path, tmp_path: Path) -> Path:  # noqa: F811
    """Two versions; the second is champion."""
    for seed in (1, 2):
        bundle = make_bundle(tmp_path / f"bundle-{seed}", seed=seed)
        registry.register(bundle, name=NAME, documents={}, release={}, run_id=None)
        registry.promote(NAME)
    return registry_home


def test_it_answers_with_label_and_score(live: Path, tmp_path: Path) -> None:
    plain = stillroom("predict", TEXT, "--model", NAME, cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    label, score = plain.stdout.split()
    assert label == LABEL
    assert 0.0 < float(score) <= 1.0
    assert "\x1b" not in plain.stdout

    for arguments, version in (((), 2), (("--version", "1"), 1)):
        answer = stillroom("predict", TEXT, "--model", NAME, "--json", *arguments, cwd=tmp_path)
        facts = json.loads(answer.stdout)
        assert facts == {"model": NAME, "version": version, "label": LABEL, "score": facts["score"]}


@pytest.mark.parametrize("text", ["", "?", "Wo ist meine Karte — 你好 🂡", "rate " * 5000])
def test_any_text_gets_a_label(live: Path, tmp_path: Path, text: str) -> None:
    answer = stillroom("predict", text, "--model", NAME, "--json", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["label"] in LABELS


@pytest.mark.alone
def test_it_takes_less_than_a_second(live: Path, tmp_path: Path) -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        assert stillroom("predict", TEXT, "--model", NAME, cwd=tmp_path).returncode == 0
        times.append(time.perf_counter() - started)
        if times[-1] < LIMIT_S:
            break
    assert min(times) < LIMIT_S, times


def test_it_imports_nothing_heavy(live: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from flows import cli; "
        f"sys.argv = ['stillroom', 'predict', {TEXT!r}, '--model', {NAME!r}]\n"
        "try: cli.main()\n"
        f"finally: print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    child = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert child.returncode == 0, child.stderr
    assert child.stderr.strip() == "[]"


def test_it_follows_every_move_at_once(live: Path) -> None:
    assert champion_bundle(NAME)[1] == 2
    registry.rollback(NAME, reason="x")
    assert champion_bundle(NAME)[1] == 1
    registry.promote(NAME, version=2, yes=True)
    assert champion_bundle(NAME)[1] == 2


def test_damaged_bytes_are_not_served(live: Path, tmp_path: Path) -> None:
    flip_byte(champion_bundle(NAME)[0] / "labels.json")
    answer = stillroom("predict", TEXT, "--model", NAME, "--json", cwd=tmp_path)
    assert answer.returncode == 4
    assert answer.stdout == ""
    assert "labels.json: found sha256" in answer.stderr
    assert "next: stillroom rollback --model tiny" in answer.stderr


def test_what_is_not_there(live: Path, tmp_path: Path) -> None:
    for arguments in (("--model", "nobody"), ("--model", NAME, "--version", "9")):
        answer = stillroom("predict", TEXT, *arguments, cwd=tmp_path)
        assert answer.returncode == 2
        assert "Traceback" not in answer.stderr
        assert "next: stillroom" in answer.stderr
