"""README's tables, written by the code that measured them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import UsageError
from tasks.evaluation.report import result_markdown


def markers(name: str) -> tuple[str, str]:
    """The comments around a section that code writes."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


BEGIN, END = markers("result")


def write_result(page: Path, summary: Mapping[str, Any]) -> bool:
    """Put the table of a run between its two markers; returns whether that changed the page.

    Raises:
        UsageError: the page has no such markers, once each and in order.
    """
    return write_section(page, "result", result_markdown(summary))


def write_section(page: Path, name: str, content: str) -> bool:
    """Put Markdown between ``<!-- name:begin -->`` and ``<!-- name:end -->`` of a page.

    Returns:
        Whether that changed the page.

    Raises:
        UsageError: the page is not there or has no such markers, once each and in order.
    """
    head, old, tail = section(page, name)
    begin, end = markers(name)
    new = f"{head}{begin}\n{content}\n{end}{tail}"
    changed = new != f"{head}{begin}{old}{end}{tail}"
    page.write_text(new, encoding="utf-8")
    return changed


def section(page: Path, name: str) -> tuple[str, str, str]:
    """What stands before, between and after the two markers of a page; writes nothing.

    Raises:
        UsageError: as `write_section`.
    """
    begin, end = markers(name)
    if not page.is_file():
        raise UsageError(
            f"{page}: found no file, expected a Markdown page", next_command="ls README.md"
        )
    head, first, rest = page.read_text("utf-8").partition(begin)
    old, second, tail = rest.partition(end)
    if not (first and second) or begin in rest or end in tail:
        raise UsageError(
            f"{page}: found no place for the table, expected {begin} and {end}, once each",
            next_command=f"printf '%s\\n' '{begin}' '{end}' >> {page}",
        )
    return head, old, tail
