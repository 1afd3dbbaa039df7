"""Workspaces: what is mirrored, what is left alone, what is refused before anything is written."""

from __future__ import annotations

import configparser
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import dvc
from flows import workspace as ws
from flows.next_command import of_this_run
from tasks import home
from tasks.errors import DataError, ParamsError, UsageError
from tasks.files import write_json

PARAMS = home.CHECKOUT / "params.yaml"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkout"
    for name, text in {
        "params.yaml": PARAMS.read_text("utf-8"),
        "dvc.yaml": "stages: {}\n",
        "dvc.lock": "schema: '2.0'\n",
        "tasks/code.py": "A = 1\n",
        "tasks/gone.py": "B = 1\n",
        "tasks/__pycache__/code.pyc": "x",
        "metrics/fetch.json": "{}",
        "reports/summary.md": "old",
        "data/own/train": "",
        "data/raw/train.tsv": "big",
        "var/state": "x",
        ".venv/bin/python": "x",
        ".dvc/config": "[core]\n    remote = here\n['remote \"here\"']\n    url = ../../store\n",
        ".dvc/config.local": "[cache]\n    type = copy\n",
        "infra/recipes/small.yaml": "prune: {ffn_keep: 0.25}\n",
        "infra/recipes/other.yaml": "seed: 7\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    monkeypatch.setattr(home, "CHECKOUT", root)
    monkeypatch.setenv("STILLROOM_HOME", str(root / "var"))
    monkeypatch.chdir(root)
    return root


def laid_out(*recipe: Any, **folder: Any) -> ws.Workspace:
    workspace = ws.resolve(*recipe, **folder)
    ws.materialize(workspace)
    return workspace


def files(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def test_without_arguments_it_is_the_checkout_and_nothing_is_written(checkout: Path) -> None:
    before = files(checkout)
    workspace = laid_out()
    assert (workspace.path, workspace.name, workspace.mirror) == (checkout, "checkout", False)
    assert files(checkout) == before


def test_mirror_has_the_sources_and_params_of_its_own(checkout: Path) -> None:
    before = {name: (checkout / name).read_bytes() for name in files(checkout)}
    workspace = laid_out("small", ["prune.heads_keep=0.5"])
    assert files(workspace.path) == {
        ws.MARKER,
        "params.yaml",
        "dvc.yaml",
        "tasks/code.py",
        "tasks/gone.py",
        "data/own/train",
        ".dvc/config",
        ".dvc/config.local",
        "infra/recipes/small.yaml",
        "infra/recipes/other.yaml",
    }
    written = yaml.safe_load((workspace.path / "params.yaml").read_text("utf-8"))
    assert (written["prune"]["ffn_keep"], written["prune"]["heads_keep"]) == (0.25, 0.5)
    assert workspace.params.prune.ffn_keep == 0.25
    assert workspace.path.parent == checkout / "var" / "workspaces"
    assert workspace.name.startswith("small-")
    assert all((checkout / name).read_bytes() == content for name, content in before.items())


def test_numbers_that_yaml_reads_as_text_are_numbers_in_the_mirror(checkout: Path) -> None:
    workspace = laid_out(None, ["distill.training.learning_rate=3e-4"])
    written = yaml.safe_load((workspace.path / "params.yaml").read_text("utf-8"))
    assert written["distill"]["training"]["learning_rate"] == 3e-4


def test_same_params_same_place_and_other_params_another(checkout: Path) -> None:
    first = ws.resolve("small", []).path
    assert ws.resolve("small", ["prune.ffn_keep=0.25"]).path == first
    assert ws.resolve("small", ["prune.ffn_keep=0.26"]).path != first
    assert ws.resolve(None, ["prune.ffn_keep=0.25"]).name.startswith("set-")


def test_preparing_again_follows_the_tree_and_leaves_results_alone(checkout: Path) -> None:
    root = laid_out("small").path
    results = ("dvc.lock", "metrics/fetch.json", "reports/summary.json", "data/models/x/model")
    for name in results:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine")
    for name in ("dvc.yaml", "params.yaml", ".dvc/config.local"):
        os.utime(root / name, (1, 1))
    (checkout / "tasks" / "code.py").write_text("A = 2\n")
    (checkout / "tasks" / "gone.py").unlink()
    (checkout / "tasks" / "new.py").write_text("C = 1\n")
    laid_out("small")
    assert (root / "tasks" / "code.py").read_text() == "A = 2\n"
    assert not (root / "tasks" / "gone.py").exists()
    assert (root / "tasks" / "new.py").exists()
    for name in ("dvc.yaml", "params.yaml", ".dvc/config.local"):
        assert (root / name).stat().st_mtime == 1, f"{name} was written though it is the same"
    assert all((root / name).read_text() == "mine" for name in results)


def test_dvc_shares_cache_and_remotes_and_keeps_off_git(checkout: Path) -> None:
    root = laid_out("small").path
    config = configparser.ConfigParser()
    config.read(root / ".dvc" / "config.local")
    assert config["core"]["no_scm"] == "true"
    assert config["core"]["check_update"] == "false"
    assert config["cache"]["dir"] == str(checkout / ".dvc" / "cache")
    assert config["cache"]["type"] == "copy"
    assert config["'remote \"here\"'"]["url"] == str(checkout.parent / "store")


def test_own_folder(checkout: Path, tmp_path: Path) -> None:
    assert laid_out(workspace=tmp_path / "mine").path == tmp_path / "mine"
    assert (tmp_path / "mine" / "tasks" / "code.py").exists()


@pytest.mark.parametrize("place", [".", "..", "../full"])
def test_a_folder_that_holds_something_else_is_refused(checkout: Path, place: str) -> None:
    (checkout.parent / "full").mkdir()
    (checkout.parent / "full" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="--workspace: "):
        laid_out("small", [], place)
    assert files(checkout.parent / "full") == {"thesis.tex"}


@pytest.mark.parametrize(
    ("recipe", "overrides", "says"),
    [
        ("smalll", [], "--recipe: found 'smalll', expected one of other, small"),
        (None, ["prune.ffn_kep=0.5"], "prune.ffn_kep: unknown key"),
        (None, ["prune.ffn_keep=lots"], "prune.ffn_keep: found 'lots'"),
        (None, ["prune.ffn_keep=1.5"], "prune.ffn_keep: found 1.5"),
        (None, ["prune.ffn_keep"], "expected section.key=value"),
    ],
)
def test_wrong_params_are_named_and_nothing_is_written(
    checkout: Path, recipe: str | None, overrides: list[str], says: str
) -> None:
    before = files(checkout)
    with pytest.raises(ParamsError) as caught:
        laid_out(recipe, overrides)
    assert says in str(caught.value)
    assert files(checkout) == before


def test_the_users_files_are_meant_from_where_the_command_is_typed(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "elsewhere"
    here.mkdir()
    for name in ("train.csv", "test.csv"):
        (here / name).write_text("text,label\na,b\n")
    monkeypatch.chdir(here)
    workspace = ws.resolve(
        None, ["data.source=files", "data.train=train.csv", "data.test=./test.csv"]
    )
    assert workspace.params.data.train == str(here / "train.csv")
    assert workspace.params.data.test == str(here / "test.csv")
    assert workspace.params.data.validation == "data/own/validation"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.source=files", "data.train=no.csv"], "data.train: found nothing at no.csv"),
        (["data.source=files"], "data.train: found nothing given"),
        (["teacher.source=path", "teacher.path=/no/model"], "teacher.path: found nothing at /no"),
    ],
)
def test_missing_user_files_are_named_and_nothing_is_written(
    checkout: Path, overrides: list[str], says: str
) -> None:
    before = files(checkout)
    with pytest.raises(DataError) as caught:
        laid_out(None, overrides)
    assert says in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.next_command
    assert files(checkout) == before


def test_paths_that_cannot_be_read_are_told_before_anything_runs(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "mine").mkdir()
    file = checkout / "mine" / "train.csv"
    file.write_text("text,label\n")
    files = ["data.source=files", f"data.test={file}"]
    for given, said in (
        (f"data.train={file.parent}", r"data\.train: found a folder at .*mine, expected a CSV"),
        ("data.train=~nobody-of-this-name/x.csv", "no user of that name"),
        (f"teacher.path={file}", r"teacher\.path: found a file at .*, expected a folder"),
    ):
        with pytest.raises(DataError, match=said):
            ws.resolve(None, [*files, f"data.train={file}", "teacher.source=path", given])
    with pytest.raises(DataError, match=r"data\.train: found .* expected data\.source files"):
        ws.resolve(None, [f"data.train={file}"])
    monkeypatch.setattr(ws.os, "access", lambda path, mode: Path(path) != file)
    with pytest.raises(DataError, match="cannot be read"):
        ws.resolve(None, [*files, f"data.train={file}"])


@pytest.mark.parametrize(
    ("name", "selector", "source"),
    [(name, *read) for name, read in ws.READ_WITH.items()],
    ids=list(ws.READ_WITH),
)
def test_what_no_source_reads_is_refused(
    checkout: Path, name: str, selector: str, source: str
) -> None:
    given = checkout / "given.csv"
    given.write_text("text,label\n")
    with pytest.raises(DataError) as caught:
        ws.resolve(None, [f"{name}={given}"])
    assert f"{name}: found {given} with {selector} " in str(caught.value)
    assert caught.value.next_command == f"stillroom compress --set {selector}={source}"


def test_an_empty_recipe_is_none_of_those(checkout: Path) -> None:
    with pytest.raises(ParamsError, match="--recipe: found ''"):
        ws.resolve("")


def test_a_mirror_that_was_cut_off_is_completed(checkout: Path) -> None:
    root = laid_out("small").path
    (root / "tasks" / "code.py").unlink()
    (root / "params.yaml").unlink()
    laid_out("small")
    assert (root / "tasks" / "code.py").exists()
    assert (root / "params.yaml").exists()


def test_a_list_of_swaps_of_ones_own(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="counterfactual: found nothing at typo"):
        ws.resolve(overrides=["evaluation.counterfactual=typo.yaml"])
    elsewhere = checkout.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "swaps.yaml").write_text("pairs: [[he, she]]\n", "utf-8")
    monkeypatch.chdir(elsewhere)
    run = ws.resolve(overrides=["evaluation.counterfactual=swaps.yaml"])
    assert run.params.evaluation.counterfactual == str(elsewhere / "swaps.yaml")
    (elsewhere / "swaps.yaml").write_text("pairs: [[he, she]", "utf-8")
    with pytest.raises(DataError, match=r"swaps\.yaml, expected pairs, prefixes and scripts"):
        ws.resolve(overrides=["evaluation.counterfactual=swaps.yaml"])
    plain = ws.resolve(overrides=["seed=3"]).params.evaluation.counterfactual
    assert plain == ws.SWAPS, "the default is the tree's own, in every workspace"


def test_a_next_command_is_about_the_run_that_it_was_said_in() -> None:
    said = "stillroom compress --set 'distill.layers=[0, 2]'"
    assert of_this_run(said, None) == said
    assert of_this_run(said, "smoke", ("distill.layers=[9]", "seed=3"), "a b", True) == (
        "stillroom compress --recipe smoke --set seed=3 --workspace 'a b' --promote "
        "--set 'distill.layers=[0, 2]'"
    )
    elsewhere = of_this_run("stillroom compress --workspace DIR", "smoke", (), "full")
    assert elsewhere == "stillroom compress --recipe smoke --workspace DIR"
    goes_on = of_this_run("stillroom compress  # goes on", None, ("a=[x, y]",))
    assert goes_on == "stillroom compress --set 'a=[x, y]'  # goes on"
    known = of_this_run("stillroom compress --recipe smoke", "smock", ("seed=3", "=1", "x"))
    assert known == "stillroom compress --set seed=3 --recipe smoke"
    for other in (None, "dvc checkout", "ls 'a b", "stillroom compress --help"):
        assert of_this_run(other, "smoke", ("seed=3",)) == other


def test_a_stages_next_command_says_where_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, file = tmp_path / "my run", tmp_path / "error.json"
    root.mkdir()
    for command, expected in (
        ("dvc checkout", f"cd '{root}' && dvc checkout"),
        ("stillroom compress --set seed=1", "stillroom compress --set seed=1"),
        (None, None),
    ):
        write_json(file, DataError("broken", next_command=command).as_dict())
        error = dvc.failure(root, "prune", file, [])
        assert isinstance(error, DataError)
        assert error.next_command == expected
    silent = dvc.failure(root, "prune", tmp_path / "none.json", ["killed"])
    assert silent.next_command == f"cd '{root}' && dvc repro --single-item prune"
    monkeypatch.chdir(root)
    write_json(file, DataError("broken", next_command="dvc checkout").as_dict())
    assert dvc.failure(root, "prune", file, []).next_command == "dvc checkout"
