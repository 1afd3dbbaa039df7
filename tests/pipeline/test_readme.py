"""README is true: every command in it is run, and its table is what the committed report says."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tasks.evaluation.readme import BEGIN, END
from tasks.evaluation.report import result_markdown
from tests.conftest import ROOT, Run, Shell

README = (ROOT / "README.md").read_text("utf-8")
WIDE = [f"gate.{key}=100" for key in ("max_drop", "max_drop_upper95", "max_macro_f1_drop",
        "stage_drop.distill", "stage_drop.finetune")]  # fmt: skip
OWN_DATA = ["release.name=", "data.max_rows=0", "gate.baseline_floor=0.0", "gate.min_parity=0.0"]
NOT_RUN = {"make test": "it is what runs this"}
AS_MAIN = ["stillroom", "compress", "--recipe", "smoke", "--set", "release.name=banking77"]
"""What `make run` does, on a few hundred rows and under the name that the main job has."""
HEADLINE = "stillroom ablate --recipe headline --technique none --seeds 3 --split test"
PEERS = "stillroom compare-peers"
ONE_PEER = ["--peer", "onnxruntime-int8"]
"""The others install gigabytes."""
OVERLAID = {
    "make run": [*AS_MAIN, "--promote"],
    HEADLINE: [*HEADLINE.split(), "--dry-run"],
    PEERS: [*PEERS.split(), *ONE_PEER],
    f"{PEERS} --recipe headline": [*PEERS.split(), "--recipe", "smoke", *ONE_PEER],
}
BEFORE = {"stillroom rollback": [[*AS_MAIN, "--set", "quantize.per_channel=false", "--promote"]]}
"""A rollback needs a champion to go back to."""
ELSEWHERE = ("dvc ", "stillroom compress --set data.source=files", PEERS)
"""Not in the checkout: it would train there for ten minutes, or leave files of a test's behind."""


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README, re.S)
    typed = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    plain = re.findall(r"^    (make \w+)", README, re.M)
    return [line.removeprefix("$ ").partition("  #")[0].strip() for line in plain + typed]


def words(command: str) -> list[str]:
    """A command as it is typed here: what takes minutes has the smoke recipe laid over it."""
    if command in OVERLAID:
        return OVERLAID[command]
    if "data.source=files" in command:
        settings = [word for s in (*WIDE, *OWN_DATA) for word in ("--set", s)]
        return [*split(command), "--recipe", "smoke", *settings]
    return split(command)


def split(command: str) -> list[str]:
    import shlex

    return shlex.split(command)


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_command_works(smoke: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    shutil.copytree(smoke.workspace, here, symlinks=True)
    (here / "data" / "mine").mkdir()
    for name, word in (("tickets", "number"), ("test", "nr")):
        rows = [f"text {word} {i},{'ab'[i % 2]}" for i in range(40)]
        (here / "data/mine" / f"{name}.csv").write_text("\n".join(["body,team", *rows]) + "\n")
    for name in ("PREFECT_PORT", "MLFLOW_PORT"):
        monkeypatch.setenv(name, free_port())
    shell = Shell(smoke.shell.home, here)
    done = set()
    for command in commands():
        if command in NOT_RUN or command in done:
            continue
        for start, preludes in BEFORE.items():
            for prelude in preludes if command.startswith(start) else []:
                assert shell(*prelude, cwd=ROOT).code == 0
        place = here if command.startswith(ELSEWHERE) else ROOT
        answer = shell(*words(command), cwd=place)
        assert answer.code == 0, f"{command}\n{answer.out}\n{answer.err}"
        done.add(command)
    assert len(done) >= 15
    own = shell.stillroom("status", "--model", "tickets", "--json").json
    assert own["challenger"]["version"] == 1, "a name that follows the data"
    assert own["champion"] is None


def test_make_test_is_what_ci_runs() -> None:
    assert "make test" in commands()
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_the_table_is_written_by_the_code() -> None:
    shown = subprocess.run(["git", "show", "HEAD:reports/summary.json"], cwd=ROOT,
                           capture_output=True, text=True, check=False)  # fmt: skip
    if shown.returncode:
        pytest.skip("no git, or nothing committed yet")
    table = README.partition(BEGIN)[2].partition(END)[0].strip()
    assert table == result_markdown(json.loads(shown.stdout))


def test_every_path_in_the_tree_exists() -> None:
    tree = README.partition("## Where things are")[2]
    for folder, files in {"flows": ("compress", "retrain", "promote", "rollback", "workspace",
                                    "cli"), "tasks": ("params", "tracking")}.items():  # fmt: skip
        for name in files:
            assert f"{name}.py" in tree
            assert (ROOT / folder / f"{name}.py").exists()
    for name in ("modeling", "training", "pruning", "quantization", "runtimes", "evaluation",
                 "release"):  # fmt: skip
        assert f"{name}/" in tree
        assert (ROOT / "tasks" / name).is_dir()
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).exists(), link
