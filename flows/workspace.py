"""Where a run happens: the checkout itself, or a mirror of it with params of its own.

    workspace = resolve("smoke", ["prune.ffn_keep=0.4"])   # checks everything, writes nothing
    materialize(workspace)                                 # lays out the folder

A mirror has the working tree as it is, its own ``params.yaml``, ``dvc.lock``,
``metrics/`` and ``reports/``, and the checkout's DVC cache: what another
workspace has computed from the same inputs is linked here, not computed again.
"""

from __future__ import annotations

import configparser
import filecmp
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from tasks import home
from tasks.errors import DataError, ParamsError, UnavailableError, UsageError
from tasks.evaluation.swaps import OURS as SWAPS
from tasks.evaluation.swaps import read_swaps
from tasks.params import assignment, fingerprint, nested, overlay, parse, read_yaml
from tasks.paths import PLACEHOLDERS
from tasks.schema import Params

MARKER = ".stillroom-workspace.json"
OWN = ("params.yaml", "dvc.lock", "metrics", "reports", ".dvc/config.local")
"""What a workspace keeps for itself."""
NOT_SOURCE = (".git", ".venv", "var", ".dvc/cache", ".dvc/tmp", "__pycache__")
USER_PATHS = ("data.train", "data.validation", "data.test", "data.unlabelled",
              "data.elsewhere.path", "data.long_texts.path", "teacher.path",
              "teach.teachers", "teach.writer.path", "distill.student.path", "distill.student.run",
              "evaluation.counterfactual")  # fmt: skip
READ_WITH = {
    "data.train": ("data.source", "files"),
    "data.validation": ("data.source", "files"),
    "data.test": ("data.source", "files"),
    "data.hub.id": ("data.source", "hub"),
    "data.elsewhere.path": ("data.elsewhere.source", "path"),
    "data.long_texts.path": ("data.long_texts.source", "path"),
    "teacher.path": ("teacher.source", "path"),
    "teacher.hub.id": ("teacher.source", "hub"),
    "teach.writer.path": ("teach.writer.source", "path"),
    "teach.writer.hub.id": ("teach.writer.source", "hub"),
    "distill.student.path": ("distill.student.source", "path"),
    "distill.student.hub.id": ("distill.student.source", "hub"),
    "distill.student.run": ("distill.student.source", "run"),
}
"""What one `source` alone reads: beside another it was meant, and would be passed over."""
RECOVERED = Path("data/models/finetune")
"""In a workspace: what a further run starts from."""


@dataclass(frozen=True)
class Workspace:
    """A root that stages run in."""

    path: Path
    params: Params
    name: str
    """``checkout``, or the folder's name."""
    content: dict[str, Any]
    """What its ``params.yaml`` says."""
    mirror: bool
    """Laid out by `materialize`; False for the checkout and for a clone."""


def resolve(
    recipe: str | None = None, overrides: Sequence[str] = (), workspace: str | Path | None = None
) -> Workspace:
    """Work out params and place of a run, and check them; writes nothing.

    Raises:
        ParamsError: an unknown recipe, or a key that is wrong.
        DataError: a file of the user's is not there.
        UsageError: the folder holds something else.
    """
    content, params = resolved_params(home.CHECKOUT, recipe, overrides)
    if recipe is None and not overrides and not workspace:
        return Workspace(home.CHECKOUT, params, "checkout", content, mirror=False)
    default = f"{recipe or 'set'}-{fingerprint(params)[:8]}"
    path = home.home() / "workspaces" / default
    if workspace:
        path = expanded(str(workspace), "--workspace")
    path = path.resolve()
    if path == home.CHECKOUT or home.CHECKOUT.is_relative_to(path):
        raise UsageError(
            f"--workspace: found {path}, which holds the checkout, expected a folder of its own",
            next_command="stillroom compress --workspace DIR",
        )
    file = next((one for one in (path, *path.parents) if one.is_file()), None)
    if file is not None:
        raise UsageError(
            f"--workspace: found a file at {file}, expected a folder",
            next_command="stillroom compress --workspace DIR",
        )
    if path.exists() and any(path.iterdir()) and not (path / MARKER).exists():
        raise UsageError(
            f"--workspace: {path} holds files and is no workspace of stillroom, "
            "expected a new or empty folder",
            next_command="stillroom compress --workspace DIR",
        )
    return Workspace(path, params, path.name, content, mirror=True)


def resolved_params(
    tree: Path, recipe: str | None, overrides: Sequence[str]
) -> tuple[dict[str, Any], Params]:
    """``params.yaml`` of a working tree, the recipe over it, each override over that, checked.

    Raises:
        ParamsError: an unknown recipe, or a key that is wrong.
        DataError: a file of the user's is not there.
    """
    content = absolute_paths(read_yaml(tree / "params.yaml"), home.CHECKOUT)
    if recipe is not None:
        content = overlay(content, absolute_paths(read_recipe(tree, recipe), home.CHECKOUT))
    for text in overrides:
        content = overlay(content, absolute_paths(assignment(text), Path.cwd()))
    params = parse(content)
    check_user_files(params)
    return typed(content, params.model_dump(mode="json")), params


def read_recipe(tree: Path, name: str) -> dict[str, Any]:
    """Read ``infra/recipes/NAME.yaml`` of a working tree."""
    folder = tree / "infra" / "recipes"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ParamsError(
            f"--recipe: found {name!r}, expected one of {', '.join(known) or '(there is none)'}",
            next_command=f"stillroom compress --recipe {known[0]}" if known else None,
        )
    return read_yaml(folder / f"{name}.yaml")


def absolute_paths(content: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make the user's relative paths absolute where something is there.

    Args:
        content: params, whole or in part.
        base: the folder that relative paths are meant from.
    """
    changed = content
    for name in USER_PATHS:
        *sections, key = name.split(".")
        found: Any = content
        for section in sections:
            found = found.get(section) if isinstance(found, dict) else None
        value = found.get(key) if isinstance(found, dict) else None
        if isinstance(value, str) and value and value not in (*PLACEHOLDERS, SWAPS):
            path = base / expanded(value, name)
            if name == "distill.student.run" and os.access(path / RECOVERED, os.R_OK):
                path = path / RECOVERED  # a workspace changes as a whole, its model does not
            if os.access(path, os.F_OK):
                changed = overlay(changed, nested(name, str(path.resolve())))
    return changed


def check_user_files(params: Params) -> None:
    """Refuse params that name a file which is not there, or which nobody would read.

    Raises:
        DataError: names the key, the path and what to type next.
    """
    wanted: dict[str, str] = {}
    for name in USER_PATHS:
        value = attrgetter(name)(params)
        given = value not in (*PLACEHOLDERS, SWAPS)
        selector, source = READ_WITH.get(name, ("", ""))
        read = attrgetter(selector)(params) == source if selector else given
        if read and (given or name != "data.validation"):  # which is split off train
            wanted[name] = value
    for name, value in wanted.items():
        folder = not name.startswith(("data.", "evaluation."))
        found = what_is_wrong(value, folder=folder)
        if found is None:
            continue
        kind = "a folder" if folder else "a CSV, TSV, JSONL or Parquet file"
        kind = f"a YAML file like {SWAPS}" if name == "evaluation.counterfactual" else kind
        raise DataError(
            f"{name}: found {found}, expected {kind}",
            next_command=f"stillroom compress --set {name}=PATH",
        )
    for name, (selector, source) in READ_WITH.items():
        value, chosen = attrgetter(name)(params), attrgetter(selector)(params)
        if value and value not in PLACEHOLDERS and chosen != source:
            raise DataError(
                f"{name}: found {value} with {selector} {chosen}, expected {selector} {source}",
                next_command=f"stillroom compress --set {selector}={source}",
            )
    swaps = params.evaluation.counterfactual
    if os.access(home.CHECKOUT / swaps, os.R_OK):
        read_swaps(home.CHECKOUT / swaps)


def what_is_wrong(value: str, *, folder: bool) -> str | None:
    """Why a user's path cannot be read; None where it can."""
    if not value or value in PLACEHOLDERS:
        return "nothing given"
    path = home.CHECKOUT / value
    try:
        there, is_folder = path.exists(), path.is_dir()
    except OSError as error:
        return f"{value}, which cannot be read ({error.strerror})"
    if not there:
        return f"nothing at {value}"
    if is_folder is not folder:
        return f"a {'folder' if is_folder else 'file'} at {value}"
    may = os.access(path, os.R_OK | (os.X_OK if folder else 0))
    return None if may else f"{value}, which cannot be read (permission denied)"


def expanded(path: str, key: str) -> Path:
    """A path with ``~`` as the user's home.

    Raises:
        DataError: it begins with the name of a user that there is not.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(
            f"{key}: found {path}, and no user of that name, expected a path",
            next_command=f"ls -d {path.partition('/')[0]}",
        ) from None


def typed(raw: Any, checked: Any) -> Any:
    """`raw` with its numbers as numbers.

    YAML 1.1 reads ``2e-4`` as text and DVC, which reads YAML 1.2, as a number; in
    a mirror's params.yaml both must see what they see in the checkout's, or the
    DVC cache has nothing for it.
    """
    if isinstance(raw, dict) and isinstance(checked, dict):
        return {key: typed(value, checked.get(key)) for key, value in raw.items()}
    return checked if isinstance(raw, str) and isinstance(checked, float) else raw


def materialize(workspace: Workspace) -> None:
    """Bring the mirror up to the working tree; unchanged files keep their times.

    Raises:
        UnavailableError: the disk refuses.
    """
    if not workspace.mirror:
        return
    marker = workspace.path / MARKER
    try:
        workspace.path.mkdir(parents=True, exist_ok=True)
        before = json.loads(marker.read_text("utf-8"))["files"] if marker.exists() else []
        now = source_files(home.CHECKOUT)
        for name in sorted(set(before) - set(now)):
            (workspace.path / name).unlink(missing_ok=True)
        # written first: a mirror that was cut off is still known as one
        write_changed(marker, json.dumps({"files": sorted(set(before) | set(now))}, indent=1))
        for name in now:
            copy_changed(home.CHECKOUT / name, workspace.path / name)
        text = yaml.safe_dump(workspace.content, sort_keys=False, allow_unicode=True)
        write_changed(workspace.path / "params.yaml", text)
        local = dvc_local_config(home.CHECKOUT, no_scm=True)
        write_changed(workspace.path / ".dvc" / "config.local", local)
        write_changed(marker, json.dumps({"files": now}, indent=1))
    except subprocess.CalledProcessError as error:
        raise UnavailableError(
            f"git in {home.CHECKOUT}: {error.stderr.decode(errors='replace').strip()}",
            next_command="git status",
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"{workspace.path}: cannot be written ({error.strerror or error})",
            next_command="stillroom compress --workspace DIR",
        ) from error


def source_files(root: Path) -> list[str]:
    """Files of a working tree as they are, relative, without what a workspace keeps for itself."""
    if (root / ".git").exists():
        done = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root, capture_output=True, check=True,
        )  # fmt: skip
        names = {name for name in os.fsdecode(done.stdout).split("\0") if name}
    else:
        names = {path.relative_to(root).as_posix() for path in root.rglob("*")}
    state = home.home()
    apart = [state.relative_to(root).as_posix()] if state.is_relative_to(root) else []
    folders = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    apart += [f for f in folders if f != "." and (root / f / MARKER).exists()]  # workspaces
    return sorted(
        name
        for name in names
        if not _inside(name, (*OWN, *NOT_SOURCE, *apart))
        and (not name.startswith("data/") or name.startswith("data/own/"))
        and ((root / name).is_file() or (root / name).is_symlink())
    )


def _inside(name: str, places: Sequence[str]) -> bool:
    """Whether a relative path is one of `places`, lies in one, or has one among its folders."""
    parts = PurePosixPath(name).parts
    return any(name == p or name.startswith(f"{p}/") for p in places) or "__pycache__" in parts


def copy_changed(source: Path, target: Path) -> None:
    """Copy a file unless the same bytes and mode are there."""
    same_kind = target.is_file() and source.is_symlink() == target.is_symlink()
    if (
        same_kind
        and source.stat().st_mode == target.stat().st_mode
        and filecmp.cmp(source, target, shallow=False)
    ):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copy(source, target, follow_symlinks=False)


def write_changed(path: Path, text: str) -> None:
    """Write text unless it stands there."""
    if path.exists() and path.read_text("utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(text, "utf-8")
    scratch.replace(path)


def dvc_local_config(checkout: Path, *, no_scm: bool) -> str:
    """``.dvc/config.local`` for another folder that shares the checkout's cache and remotes."""
    ours = configparser.ConfigParser(interpolation=None)
    ours.read([checkout / ".dvc" / "config", checkout / ".dvc" / "config.local"], "utf-8")
    theirs = configparser.ConfigParser(interpolation=None)
    for section in ours.sections():
        theirs[section] = dict(ours[section])
        url = ours[section].get("url", "")
        if url and "://" not in url:
            theirs[section]["url"] = str((checkout / ".dvc" / url).resolve())
    cache = ours.get("cache", "dir", fallback="cache")
    for section, key, value in (
        ("core", "no_scm", str(no_scm).lower()),
        ("core", "analytics", "false"),
        ("core", "check_update", "false"),
        ("cache", "dir", str((checkout / ".dvc" / cache).resolve())),
    ):
        if not theirs.has_section(section):
            theirs.add_section(section)
        theirs[section][key] = value
    return "".join(
        f"[{section}]\n"
        + "".join(f"    {key} = {value}\n" for key, value in theirs[section].items())
        for section in theirs.sections()
    )
