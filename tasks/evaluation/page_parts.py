"""The parts that the report page is put together from; each escapes what it is given."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tasks.evaluation.figures import DASH

Record = Mapping[str, Any]
Column = tuple[str, Callable[[Record], str]]
KEY = (("teacher", "teacher"), ("candidate", "candidate"))


@dataclass(frozen=True)
class Section:
    """A part of the page with a place in its contents."""

    id: str
    title: str
    body: str
    """Markup."""

    def html(self) -> str:
        """The section; ``id`` and heading tie together for those who listen to it."""
        return (
            f'<section id="{self.id}" aria-labelledby="{self.id}-title">'
            f'<h2 id="{self.id}-title">{escape(self.title)}</h2>{self.body}</section>'
        )


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Record],
    *,
    words: Sequence[str] = (),
    bold: str | None = None,
) -> str:
    """A table whose first column heads its rows; wide ones scroll in a frame of their own.

    A further column without a single figure is left out.

    Args:
        caption: what it shows.
        columns: heads and cells.
        rows: a record for each line.
        words: heads of further columns that hold text, not figures.
        bold: the row of this first cell stands out.
    """
    told = [c for c in columns[1:] if any(c[1](row) != DASH for row in rows)]
    columns = [columns[0], *told]
    heads = "".join(
        f'<th scope="col"{_words(head, words)}>{escape(head)}</th>' for head, _ in columns
    )
    lines = []
    for row in rows:
        first, *others = [(head, cell(row)) for head, cell in columns]
        mark = ' class="candidate"' if bold is not None and first[1] == bold else ""
        cells = "".join(f"<td{_words(h, words)}>{_verdict(text)}</td>" for h, text in others)
        lines.append(f'<tr{mark}><th scope="row">{_breakable(first[1])}</th>{cells}</tr>')
    return (
        f'<div><p class="caption">{escape(caption)}</p>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table aria-label="{escape(caption)}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></div>"
    )


def figure(heading: str, drawing: str, caption: str = "") -> str:
    """A chart with its heading."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(heading)}</h3>{drawing}{below}</figure>"


def charts(*figures: str) -> str:
    """Figures side by side as far as there is room."""
    shown = [f for f in figures if f]
    return f'<div class="charts">{"".join(shown)}</div>' if shown else ""


def pair(drawn: str, told: str) -> str:
    """A chart and its table, side by side where there is room."""
    return f'<div class="charts pair">{drawn}{told}</div>' if drawn and told else drawn + told


def key(entries: Sequence[tuple[str, str]] = KEY) -> str:
    """What the colours mean: style class and name."""
    items = "".join(f'<li><i class="fill-{kind}"></i>{escape(name)}</li>' for kind, name in entries)
    return f'<ul class="key" aria-label="colours">{items}</ul>'


def facts(lines: Sequence[str]) -> str:
    """A list of sentences; ``**strong**`` and backticks as in `summary.md`."""
    items = "".join(f"<li>{inline(line)}</li>" for line in lines)
    return f'<ul class="facts">{items}</ul>' if items else ""


def paragraph(text: str, style: str = "") -> str:
    """A paragraph; ``**strong**`` and backticks as in `summary.md`."""
    return f"<p{f' class={chr(34)}{style}{chr(34)}' if style else ''}>{inline(text)}</p>"


def more(summary: str, body: str) -> str:
    """What only some want to see: folded away."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def inline(text: str) -> str:
    """Escaped, with ``**strong**`` and backticks turned to markup."""
    marked = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", marked)


def _words(head: str, words: Sequence[str]) -> str:
    return ' class="words"' if head in words else ""


def _verdict(text: str) -> str:
    """Yes and no in colour as well as in words."""
    return f'<span class="{text}">{text}</span>' if text in ("yes", "no") else _breakable(text)


def _breakable(text: str) -> str:
    """Escaped, and free to go on in the next line after an underscore, as labels have them."""
    return escape(text).replace("_", "_<wbr>")
