"""README's result table, written by the code that measured it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import UsageError
from tasks.evaluation.report import result_markdown

BEGIN, END = "<!-- result:begin -->", "<!-- result:end -->"


def write_result(page: Path, summary: Mapping[str, Any]) -> bool:
    """Put the table between the two markers of a page; returns whether that changed it.

    Raises:
        UsageError: the page has no such markers, once each and in order.
    """
    text = page.read_text("utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in tail:
        raise UsageError(
            f"{page}: found no place for the table, expected {BEGIN} and {END}",
            next_command=f"git checkout {page}",
        )
    new = f"{head}{BEGIN}\n{result_markdown(summary)}\n{END}{tail}"
    page.write_text(new, encoding="utf-8")
    return new != text
