"""Figures and tables as a reader sees them."""

from __future__ import annotations

import math
from collections.abc import Sequence

DASH = "–"
"""For what was not measured."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and figures to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    cells = [[plain(cell) for cell in line] for line in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *cells])


def plain(text: str) -> str:
    """Text from data as it is: no column, line or element of its own."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").splitlines())


def number(value: float | None, digits: int, scale: float = 1) -> str:
    """With separators and so many digits after the point; a dash for what is no number."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value * scale:,.{digits}f}"


def significant(value: float | None) -> str:
    """Three significant digits, never an exponent."""
    if value is None or not math.isfinite(value) or value <= 0:
        return DASH
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"
