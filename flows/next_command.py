"""The command to type next, with what a run was called with."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence

from tasks.errors import StillroomError


@contextlib.contextmanager
def about(
    recipe: str | None, overrides: Sequence[str], workspace: str | None, promote: bool
) -> Iterator[None]:
    """Give errors a next command that has this run's recipe, settings and place, too.

    Who raises one knows the key that it found wrong, not how the others came about.
    """
    try:
        yield
    except StillroomError as error:
        command = of_this_run(error.next_command, recipe, overrides, workspace, promote)
        if command == error.next_command:
            raise
        raise type(error)(error.message, next_command=command) from error


def of_this_run(
    command: str | None,
    recipe: str | None,
    overrides: Sequence[str] = (),
    workspace: str | None = None,
    promote: bool = False,
) -> str | None:
    """A ``stillroom compress …`` with what else the run was called with; others as they are."""
    typed, remark, why = (command or "").partition("  # ")
    words = shlex.split(typed) if typed.startswith("stillroom compress") else []
    if words[:2] != ["stillroom", "compress"] or "--help" in words:
        return command
    said = {word.partition("=")[0] for word in words if "=" in word}
    more = ["--recipe", recipe] if recipe and "--recipe" not in words else []
    for setting in overrides:
        key, equals, _ = setting.partition("=")
        if equals and key.strip() and key.strip() not in said:
            more += ["--set", setting]
    more += ["--workspace", workspace] if workspace and "--workspace" not in words else []
    more += ["--promote"] if promote else []
    return shlex.join([*words[:2], *more, *words[2:]]) + remark + why
