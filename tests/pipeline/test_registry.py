"""The registry on a real MLflow: what is registered, what moves, and what is remembered."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tasks.errors import GateRefused, IntegrityError, UnavailableError, UsageError
from tasks.files import file_sha256
from tasks.release import packaging, registry
from tasks.release.champion import champion_bundle
from tasks.release.history import Registered
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
    write_manifest,
)

NAME = "tiny"
pytestmark = pytest.mark.usefixtures("registry_home")


def put(tmp_path: Path, seed: int, *, name: str = NAME) -> Registered:
    """Register the bundle of a seed."""
    release = {"commit": "0" * 40, "dirty": False}
    return register_tiny(tmp_path, seed, release=release, name=name)


def standing(name: str = NAME) -> tuple[int | None, int | None, int | None]:
    """Numbers of champion, previous and challenger; the aliases in MLflow say the same."""
    found = registry.status(name)
    roles = ("champion", "previous", "challenger")
    numbers = tuple(None if found[role] is None else found[role]["version"] for role in roles)
    aliases = client().get_registered_model(name).aliases
    assert tuple(int(aliases[role]) if role in aliases else None for role in roles) == numbers
    return numbers  # type: ignore[return-value]


def moves(name: str = NAME) -> list[tuple[str, int | None, int | None, str]]:
    """The log, shortened."""
    log = registry.status(name, history=True)["moves"]
    return [(move["kind"], move["from"], move["to"], move["state"]) for move in log]


def client() -> Any:
    """A client of MLflow's own, as another tool would make it."""
    from mlflow.tracking.client import MlflowClient

    from tasks.home import tracking_uri

    return MlflowClient(tracking_uri=tracking_uri(), registry_uri=tracking_uri())


# --- registering -----------------------------------------------------------------------


def test_registration_is_once_per_artifact_hash(tmp_path: Path) -> None:
    first, again, other = put(tmp_path, 1), put(tmp_path, 1), put(tmp_path, 2)
    assert (first.version, first.created) == (1, True)
    assert (again.version, again.created) == (1, False)
    assert (other.version, other.created) == (2, True)
    assert first.artifact_sha256 == again.artifact_sha256 != other.artifact_sha256
    assert standing() == (None, None, 2)


def test_a_version_holds_bundle_documents_and_code(tmp_path: Path) -> None:
    put(tmp_path, 1)
    folder, _ = champion_bundle(NAME, 1)
    root = folder.parent.parent
    assert {file.name for file in (root / "documents").iterdir()} == {
        "gate.json", "params.yaml", "dvc.lock", "summary.json", "summary.md", "release.json",
    }  # fmt: skip
    assert json.loads((root / "documents" / "release.json").read_text())["dirty"] is False
    assert file_sha256(folder / "model.onnx") == file_sha256(tmp_path / "bundle-1" / "model.onnx")
    assert not list(root.rglob("*.pkl"))
    assert "tokenizers==" in (root / "requirements.txt").read_text()
    tags = client().get_model_version(NAME, "1").tags
    assert tags["artifact_sha256"] == registry.status(NAME)["challenger"]["artifact_sha256"]


def test_a_version_links_the_run_that_it_came_from(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", seed=1)
    mlflow = client()
    experiment = mlflow.create_experiment("pipeline", (tmp_path / "artifacts").as_uri())
    run = mlflow.create_run(experiment).info.run_id
    registry.register(bundle, name=NAME, documents={}, release={}, run_id=run)
    assert mlflow.get_model_version(NAME, "1").run_id == run
    assert champion_bundle(NAME, 1)[0].is_relative_to(tmp_path / "artifacts")


def test_what_may_not_be_registered(tmp_path: Path) -> None:
    refused = make_bundle(tmp_path / "refused", passed=False)
    damaged = make_bundle(tmp_path / "damaged")
    flip_byte(damaged / "model.onnx")
    other_verdict = make_bundle(tmp_path / "verdict")
    manifest = json.loads((other_verdict / "manifest.json").read_text())
    manifest["gate"]["artifact_sha256"] = "0" * 64
    (other_verdict / "manifest.json").write_text(json.dumps(manifest))
    sound = make_bundle(tmp_path / "sound")
    for bundle, documents, error, words in (
        (refused, {}, GateRefused, r"drop 0.5 \(max 2.0\)"),
        (damaged, {}, IntegrityError, "model.onnx: found sha256"),
        (other_verdict, {}, IntegrityError, "verdict on 0000"),
        (tmp_path, {}, UsageError, "expected a bundle"),
        (sound, {"dvc.lock": tmp_path / "none"}, UnavailableError, "dvc.lock"),
    ):
        with pytest.raises(error, match=words):
            registry.register(bundle, name=NAME, documents=documents, release={}, run_id=None)
    assert registry.status(NAME)["challenger"] is None


def test_registering_at_once_makes_one_version(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    script = (
        "import sys; from pathlib import Path; from tasks.release import registry\n"
        "print(registry.register(Path(sys.argv[1]), name='tiny', documents={}, release={}, "
        "run_id=None))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(bundle)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert all("version=1" in output for output in outputs), outputs
    assert sum("created=True" in output for output in outputs) == 1


def test_a_damaged_version_is_made_anew(tmp_path: Path) -> None:
    put(tmp_path, 1)
    registry.promote(NAME)
    flip_byte(champion_bundle(NAME)[0] / "model.onnx")
    with pytest.raises(IntegrityError, match="stillroom rollback"):
        champion_bundle(NAME)
    assert put(tmp_path, 1).version == 2
    registry.promote(NAME)
    assert champion_bundle(NAME)[1] == 2


def test_damaged_bytes_that_were_withdrawn_are_made_anew_and_stay_withdrawn(
    tmp_path: Path,
) -> None:
    for seed in (1, 2):
        put(tmp_path, seed)
        registry.promote(NAME)
    flip_byte(champion_bundle(NAME)[0] / "model.onnx")
    assert registry.rollback(NAME, reason="damaged").target == 1
    anew = put(tmp_path, 2)
    assert (anew.version, anew.created, anew.withdrawn) == (3, True, True)
    assert not registry.promote(NAME).changed, "no run brings back what somebody withdrew"
    assert standing()[0] == 1
    assert registry.promote(NAME, version=3, yes=True).target == 3
    assert champion_bundle(NAME)[1] == 3
    assert (put(tmp_path, 2).version, registry.promote(NAME).changed) == (3, False)


# --- the drill -------------------------------------------------------------------------


def test_drill(tmp_path: Path) -> None:
    put(tmp_path, 1)
    assert registry.promote(NAME).target == 1
    put(tmp_path, 2)
    assert standing() == (1, None, 2)
    second = registry.promote(NAME, why="better")
    assert (second.source, second.target, second.changed) == (1, 2, True)
    assert standing() == (2, 1, None)

    back = registry.rollback(NAME, reason="wrong answers", who="on call")
    assert (back.kind, back.source, back.target) == ("rollback", 2, 1)
    assert standing() == (1, None, None)
    assert champion_bundle(NAME)[1] == 1
    tags = client().get_model_version(NAME, "2").tags
    assert tags["withdrawn_reason"] == "wrong answers"
    assert tags["withdrawn"] == back.when

    # the next scheduled run makes the same bytes and promotes what it registered
    nightly = put(tmp_path, 2)
    assert (nightly.version, nightly.created, nightly.withdrawn) == (2, False, True)
    assert standing() == (1, None, None)
    unmoved = registry.promote(NAME)
    assert not unmoved.changed
    assert "withdrawn" in unmoved.note
    with pytest.raises(UsageError, match="--version 2 --yes"):
        registry.promote(NAME, version=nightly.version)

    with pytest.raises(UsageError, match="no earlier champion"):
        registry.rollback(NAME, reason="again")
    assert standing() == (1, None, None)

    registry.promote(NAME, version=2, yes=True)
    assert standing() == (2, 1, None)
    assert "withdrawn" not in client().get_model_version(NAME, "2").tags
    log = registry.status(NAME, history=True)["moves"]
    assert [(m["kind"], m["from"], m["to"]) for m in log] == [
        ("promote", None, 1),
        ("promote", 1, 2),
        ("rollback", 2, 1),
        ("promote", 1, 2),
    ]
    assert [m["why"] for m in log] == ["", "better", "wrong answers", ""]
    assert log[2]["who"] == "on call"
    assert [m["when"] for m in log] == sorted(m["when"] for m in log)
    assert {m["verdict"] for m in log} == {"passed"}


def test_another_data_sets_classifier_does_not_take_the_place_unasked(tmp_path: Path) -> None:
    put(tmp_path, 1)
    registry.promote(NAME)
    make_bundle(tmp_path / "bundle-2", seed=2, name=NAME, called=("0", "1", "2"))
    put(tmp_path, 2)
    with pytest.raises(UsageError, match=r"none of the champion's labels .*'0'.*'card_arr") as said:
        registry.promote(NAME)
    assert standing()[0] == 1
    command = str(said.value.next_command).partition("  #")[0]
    assert command == f"stillroom promote --model {NAME} --version 2 --yes"
    assert registry.promote(NAME, version=2, yes=True).target == 2


def test_before_a_first_promotion_the_way_to_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as nothing:
        champion_bundle(NAME)
    assert nothing.value.next_command == "stillroom compress --promote"
    put(tmp_path, 1)
    with pytest.raises(UsageError) as waiting:
        champion_bundle(NAME)
    assert waiting.value.next_command == f"stillroom promote --model {NAME}"


def test_promoting_the_champion_changes_nothing(tmp_path: Path) -> None:
    put(tmp_path, 1)
    registry.promote(NAME)
    move = registry.promote(NAME, version=1)
    assert (move.kind, move.source, move.target) == ("none", 1, 1)
    assert moves() == [("promote", None, 1, "done")]


def test_nothing_to_promote(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no version to promote") as caught:
        registry.promote(NAME)
    assert caught.value.next_command == "stillroom compress --promote"
    with pytest.raises(UsageError, match="no champion"):
        registry.rollback(NAME, reason="x")
    put(tmp_path, 1)
    registry.promote(NAME)
    again = registry.promote(NAME)
    assert (again.source, again.target) == (1, 1), "it is champion already"
    with pytest.raises(UsageError, match="no version 7, expected one of: 1"):
        registry.promote(NAME, version=7)
    with pytest.raises(UsageError, match="reason"):
        registry.rollback(NAME, reason="  ")
    with pytest.raises(UsageError, match="letters, digits"):
        registry.status("a/b'c")


def test_the_challenger_is_the_newest_registration_after_the_champion(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        put(tmp_path, seed)
    assert standing() == (None, None, 3)
    registry.promote(NAME, version=2)
    assert standing() == (2, None, 3)
    registry.promote(NAME)
    assert standing() == (3, 2, None)  # neither 1 nor 2 is news
    put(tmp_path, 1)  # someone went back to the first settings
    assert standing() == (3, 2, 1)


def test_rollback_to_a_named_version(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        put(tmp_path, seed)
        registry.promote(NAME)
    put(tmp_path, 4)
    for version, words in ((3, "is the champion"), (4, "was no champion"), (9, "no version 9")):
        with pytest.raises(UsageError, match=words):
            registry.rollback(NAME, reason="x", to=version)
    moved = registry.rollback(NAME, reason="both are bad", to=1)
    assert moved.note.endswith("again; versions 3, 2 are withdrawn: both are bad")
    assert standing() == (1, None, 4), "what was jumped over is out, too"
    for version in (2, 3):
        with pytest.raises(UsageError, match="was withdrawn"):
            registry.rollback(NAME, reason="x", to=version)
        with pytest.raises(UsageError, match="both are bad"):
            registry.promote(NAME, version=version)
    with pytest.raises(UsageError, match="no earlier champion"):
        registry.rollback(NAME, reason="x")
    registry.promote(NAME, version=2, yes=True)
    assert standing() == (2, 1, 4)


def test_a_rollback_that_was_cut_off_withdraws_what_it_jumped_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2, 3):
        put(tmp_path, seed)
        registry.promote(NAME)
    with monkeypatch.context() as cut:
        cut.setattr(registry.journal, "complete", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            registry.rollback(NAME, reason="x", to=1)
    assert standing() == (1, None, None)


def test_a_mistyped_home_is_no_empty_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path / "typo"))
    for move in (lambda: registry.promote(NAME), lambda: registry.rollback(NAME, reason="x")):
        with pytest.raises(UsageError, match=r"found no registry at .*typo"):
            move()
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("file", ["model.onnx", "labels.json", "manifest.json"])
def test_rollback_to_flipped_bytes_is_refused(tmp_path: Path, file: str) -> None:
    for seed in (1, 2):
        put(tmp_path, seed)
        registry.promote(NAME)
    before = registry.status(NAME, history=True)
    flip_byte(champion_bundle(NAME, 1)[0] / file)
    with pytest.raises(IntegrityError, match=f"{file}: found sha256") as caught:
        registry.rollback(NAME, reason="x")
    assert caught.value.exit_code == 4
    assert registry.status(NAME, history=True) == before
    assert champion_bundle(NAME)[1] == 2
    assert "withdrawn" not in client().get_model_version(NAME, "2").tags


def test_promotion_of_flipped_or_rewritten_files_is_refused(tmp_path: Path) -> None:
    put(tmp_path, 1)
    registry.promote(NAME)
    put(tmp_path, 2)
    folder, _ = champion_bundle(NAME, 2)
    flip_byte(folder / "model.onnx")
    with pytest.raises(IntegrityError):
        registry.promote(NAME)
    write_manifest(folder)  # even with a manifest that agrees: the registry remembers
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        registry.promote(NAME)
    assert standing() == (1, None, 2)


def test_promotion_answers_a_request_first(tmp_path: Path) -> None:
    broken = make_bundle(tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    write_manifest(broken)
    registry.register(broken, name=NAME, documents={}, release={}, run_id=None)
    with pytest.raises(IntegrityError, match="cannot be loaded"):
        registry.promote(NAME)
    assert moves() == []


def test_promotion_reads_the_verdict_of_the_version(tmp_path: Path) -> None:
    put(tmp_path, 1)
    make_bundle(tmp_path / "bundle-1", seed=1, passed=False)  # the working copy, meanwhile
    assert registry.promote(NAME).target == 1
    with pytest.raises(GateRefused, match="no verdict"):
        packaging.check_verdict({"artifact_sha256": "0"})


def test_a_bundle_for_another_machine_is_promoted_with_a_warning(tmp_path: Path) -> None:
    for seed, profile in ((1, "cpu-avx2"), (2, "gpu-sm90")):
        make_bundle(tmp_path / f"bundle-{seed}", seed=seed, profile=profile)
        put(tmp_path, seed)
        done = stillroom("promote", "--model", NAME, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("built for gpu-sm90" in done.stderr) == (profile == "gpu-sm90"), done.stderr
        assert json.loads(done.stdout)["to"] == seed


# --- two at once, and crashes ----------------------------------------------------------


def test_two_promotions_at_once(tmp_path: Path) -> None:
    put(tmp_path, 1)
    registry.promote(NAME)
    put(tmp_path, 2)
    put(tmp_path, 3)
    command = [str(Path(sys.executable).parent / "stillroom"), "promote", "--model", NAME]
    both = [
        subprocess.Popen([*command, "--version", str(n)], stdout=subprocess.PIPE, text=True)
        for n in (2, 3)
    ]
    for process in both:
        process.communicate(timeout=120)
    assert [process.returncode for process in both] == [0, 0]
    (_, first, second) = moves()
    assert first[:2] == ("promote", 1)
    assert second == ("promote", first[2], 5 - first[2], "done")  # type: ignore[operator]
    assert standing()[:2] == (second[2], first[2])


CRASHES = {
    "before the intent": ("create_run", "before"),
    "after the intent": ("create_run", "after"),
    "before the alias": ("set_registered_model_alias", "before"),
    "after the alias": ("set_registered_model_alias", "after"),
    "amid the tags": ("set_model_version_tag", "after"),
    "before the end": ("set_terminated", "before"),
    "after the end": ("set_terminated", "after"),
}
CHILD = """
import os, sys
from mlflow.tracking.client import MlflowClient
from tasks.release import registry
method, when, call = sys.argv[1:]
original = getattr(MlflowClient, method)
def dying(self, *args, **kwargs):
    if when == "after":
        original(self, *args, **kwargs)
    os._exit(9)
setattr(MlflowClient, method, dying)
registry.promote("tiny") if call == "promote" else registry.rollback("tiny", reason="bad")
"""


@pytest.mark.parametrize(
    ("call", "point"),
    [("promote", point) for point in CRASHES if point != "amid the tags"]
    + [("rollback", point) for point in ("before the alias", "after the alias", "amid the tags")],
)
def test_a_crash_is_finished_or_voided_by_the_next_call(
    tmp_path: Path, call: str, point: str
) -> None:
    put(tmp_path, 1)
    registry.promote(NAME)
    put(tmp_path, 2)
    if call == "rollback":
        registry.promote(NAME)
    before, log = standing(), moves()
    source, target = (1, 2) if call == "promote" else (2, 1)
    child = subprocess.run([sys.executable, "-c", CHILD, *CRASHES[point], call], timeout=120)
    assert child.returncode == 9

    moved = list(CRASHES).index(point) >= list(CRASHES).index("after the alias")
    assert champion_bundle(NAME)[1] == (target if moved else source)
    after = {"promote": (2, 1, None), "rollback": (1, None, None)}[call]
    assert standing() == (after if moved else before)
    state = "done" if moved else "void"
    recorded = [] if point == "before the intent" else [(call, source, target, state)]
    assert moves() == log + recorded
    withdrawn = "withdrawn" in client().get_model_version(NAME, "2").tags
    assert withdrawn == (moved and call == "rollback")

    if not moved:  # and it can be done again
        registry.promote(NAME) if call == "promote" else registry.rollback(NAME, reason="bad")
        assert standing() == after


def test_an_alias_moved_by_hand_is_written_down(tmp_path: Path) -> None:
    for seed in (1, 2):
        put(tmp_path, seed)
        registry.promote(NAME)
    mlflow = client()
    mlflow.set_registered_model_alias(NAME, "champion", "1")
    mlflow.set_registered_model_alias(NAME, "challenger", "1")
    mlflow.delete_registered_model_alias(NAME, "previous")
    assert standing() == (1, 2, 2)
    assert moves()[-1] == ("external", 2, 1, "done")
    mlflow.delete_registered_model_alias(NAME, "champion")
    assert standing()[0] is None
    assert len(moves()) == len(moves()) == 4


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(tmp_path, 1)
    (Path(os.environ["STILLROOM_HOME"]) / "mlflow" / "mlflow.db").write_text("no database" * 99)
    with pytest.raises(UnavailableError, match="expected MLflow's store to answer"):
        registry.promote(NAME)


# --- as others see it ------------------------------------------------------------------


def test_a_stranger_loads_it_with_mlflow_alone(tmp_path: Path) -> None:
    put(tmp_path, 1)
    registry.promote(NAME)
    script = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in f"{f} {f.__class__}".lower()]
import importlib.util
assert importlib.util.find_spec("tasks") is None, "the project is on the path"
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/tiny@champion")
texts = ["where is my card?", "i lost my card"]
for given in (texts, pd.Series(texts), pd.DataFrame({"text": texts})):
    answers = model.predict(given)
    assert list(answers.columns) == ["label", "score"], answers
    assert list(answers["label"]) == ["card_arrival", "lost_card"], answers
    assert answers["score"].between(0, 1).all()
assert "torch" not in sys.modules
print("loaded from", sys.modules["tasks"].__file__)
"""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    uri = f"sqlite:///{os.environ['STILLROOM_HOME']}/mlflow/mlflow.db"
    child = subprocess.run(
        [sys.executable, "-I", "-c", script, uri],
        cwd=elsewhere, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert "mlflow/artifacts/registry" in child.stdout


def test_the_code_that_goes_with_a_model_is_an_import_closure() -> None:
    carried = {name.removesuffix(".py").replace("/", ".") for name in packaging.LOADER}
    carried |= {name.removesuffix(".__init__") for name in carried}
    for name in (*packaging.LOADER, "tasks/release/pyfunc_model.py"):
        for node in ast.walk(ast.parse((REPOSITORY / name).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tasks"):
                assert node.module in carried, f"{name} imports {node.module}"


def test_the_fast_path_and_mlflow_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2):
        put(tmp_path, seed)
        registry.promote(NAME)
    for version in (None, 1, 2):
        folder, number = champion_bundle(NAME, version)
        slow = registry.located(NAME, version)
        assert slow is not None
        assert (slow.folder, slow.version) == (folder, number)
    assert registry.located(NAME, 3) is None
    with pytest.raises(UsageError, match="no version 3"):
        champion_bundle(NAME, 3)
    with pytest.raises(UsageError, match="no champion"):
        champion_bundle("nobody")
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="no champion"):
        champion_bundle(NAME)
    assert registry.status(NAME)["champion"] is None
    assert not (tmp_path / "empty").exists()


def test_the_flows_make_the_same_moves(tmp_path: Path) -> None:
    from prefect.testing.utilities import prefect_test_harness

    from flows.promote import promote
    from flows.rollback import rollback

    for seed in (1, 2):
        put(tmp_path, seed)
    with prefect_test_harness(server_startup_timeout=120):
        assert promote(model=NAME, version=1)["to"] == 1
        assert promote(model=NAME, why="better")["from"] == 1
        assert rollback(reason="worse", model=NAME)["to"] == 1
        with pytest.raises(UsageError):
            rollback(reason="worse", model=NAME)
    assert standing() == (1, None, None)
    log = registry.status(NAME, history=True)["moves"]
    assert all(move["who"].startswith("prefect: ") for move in log)


def test_status_keeps_its_contract(tmp_path: Path) -> None:
    schema = json.loads((REPOSITORY / "infra" / "schemas" / "status.schema.json").read_text())
    jsonschema.validate(registry.status(NAME), schema)
    for seed in (1, 2):
        put(tmp_path, seed)
        registry.promote(NAME)
    put(tmp_path, 3)
    found = registry.status(NAME, history=True)
    jsonschema.validate(found, schema)
    assert [found[role]["version"] for role in ("champion", "previous", "challenger")] == [2, 1, 3]
    assert found["champion"]["since"] == found["moves"][-1]["when"]


def test_the_command_line_moves_without_prefect(tmp_path: Path) -> None:
    for seed in (1, 2):
        put(tmp_path, seed)
        registry.promote(NAME)
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    try:
        done = stillroom("rollback", "--model", NAME, "--reason", "x", "--json", cwd=tmp_path)
    finally:
        del os.environ["PREFECT_API_URL"]
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["to"] == 1
    answer = stillroom("predict", TEXT, "--model", NAME, "--json", cwd=tmp_path)
    assert json.loads(answer.stdout)["version"] == 1
    assert json.loads(answer.stdout)["label"] == LABEL
    shutil.rmtree(tmp_path / "bundle-1")  # the version is whole without what it was made from
    assert champion_bundle(NAME)[1] == 1
