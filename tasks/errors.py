"""What can go wrong, and the exit code that says so.

    StillroomError            1  never raised itself
    ├── UsageError            2  wrong usage, params, or user data
    │   ├── ParamsError       2  a key in params.yaml, a recipe or --set
    │   └── DataError         2  the user's own files
    ├── GateRefused           3  a stage limit or the gate said no
    ├── IntegrityError        4  bytes differ from a recorded hash
    └── UnavailableError      5  network, disk, device or server missing

Every message names the key or file, what was found, what was expected, and the
command to type next. A stage leaves it in ``metrics/<stage>.error.json``; the
command line turns it into an exit code.
"""

from __future__ import annotations


class StillroomError(Exception):
    """Base of all errors that a user is meant to read; carries its exit code."""

    exit_code = 1

    def __init__(self, message: str, *, next_command: str | None = None) -> None:
        self.message = message
        self.next_command = next_command
        super().__init__(message if next_command is None else f"{message}\n  next: {next_command}")

    def as_dict(self) -> dict[str, object]:
        """The content of ``metrics/<stage>.error.json``."""
        return {
            "kind": type(self).__name__,
            "exit_code": self.exit_code,
            "message": self.message,
            "next_command": self.next_command,
        }


class UsageError(StillroomError):
    """The command, its parameters or the user's data are wrong."""

    exit_code = 2


class ParamsError(UsageError):
    """A parameter is unknown, of the wrong type, or out of range."""


class DataError(UsageError):
    """The user's data is missing, unreadable or unusable."""


class GateRefused(StillroomError):
    """A candidate does not meet its limits."""

    exit_code = 3


class IntegrityError(StillroomError):
    """Bytes differ from the hash that was recorded for them."""

    exit_code = 4


class UnavailableError(StillroomError):
    """Network, disk, device or server is missing."""

    exit_code = 5


BY_NAME = {
    error.__name__: error
    for error in (
        UsageError,
        ParamsError,
        DataError,
        GateRefused,
        IntegrityError,
        UnavailableError,
    )
}


def from_dict(record: dict[str, object]) -> StillroomError:
    """Rebuild the error that a stage left behind."""
    kind = BY_NAME.get(str(record.get("kind")), StillroomError)
    command = record.get("next_command")
    return kind(str(record.get("message")), next_command=None if command is None else str(command))
