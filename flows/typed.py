"""What a person typed, as far as an option's type does not check it."""

from __future__ import annotations

from tasks.errors import UsageError


def utf8(text: str, what: str) -> str:
    """The same text.

    Raises:
        UsageError: it has bytes of another encoding.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what}: found bytes that are no UTF-8, expected text",
            next_command="iconv -f latin1 -t utf-8",
        ) from error
    return text
