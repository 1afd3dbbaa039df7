"""What a comparison with peers says: the rows, and who is near whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.evaluation.quality import quality
from tasks.evaluation.tables import number, table

OURS = "stillroom"
NEAR = 2.0
"""Points of accuracy within which a peer is an alternative."""


@dataclass(frozen=True)
class Peer:
    """One way to serve the same teacher, measured."""

    name: str
    logits: np.ndarray
    """``[texts, classes]`` of the whole split."""
    file_bytes: int
    """All that answering needs, tokenizer included."""
    ms: np.ndarray
    """Every timed call at batch 1, one thread, text in, label out."""

    def row(self, labels: np.ndarray) -> dict[str, Any]:
        """One of ``rows``."""
        p50, p95, p99 = (float(p) for p in np.percentile(self.ms, [50, 95, 99]))
        return {
            "name": self.name,
            "quality": quality(self.logits, labels),
            "file_bytes": self.file_bytes,
            "latency_ms": {"p50": p50, "p95": p95, "p99": p99},
            "throughput_per_s": float(1e3 * self.ms.size / self.ms.sum()),
        }


def verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each peer that is near or faster; rows as in ``--json``, ours among them."""
    ours = next(row for row in rows if row["name"] == OURS)
    own = ours["quality"]["accuracy"]
    lines = []
    for row in rows:
        if row is ours:
            continue
        apart = round(100 * (row["quality"]["accuracy"] - own), 6)
        size = row["file_bytes"] / ours["file_bytes"]
        speed = row["latency_ms"]["p50"] / ours["latency_ms"]["p50"]
        if abs(apart) <= NEAR or speed < 1:
            place = "within two points" if abs(apart) <= NEAR else "further off"
            lines.append(f"{row['name']}: {apart:+.2f} points ({place}), {size:.1f}× our bytes, "
                         f"{speed:.1f}× our p50")  # fmt: skip
    return lines or ["no peer is within two points of ours or faster"]


def peers_markdown(
    rows: Sequence[Mapping[str, Any]], split: str, n: int, *, missing: Sequence[str] = ()
) -> str:
    """The table and the sentences below it; `missing` are peers that could not be measured."""
    head = ["model", "accuracy %", "macro-F1 %", "bytes", "p50 ms", "p95 ms", "texts per s"]
    ranked = sorted(rows, key=lambda row: -row["quality"]["accuracy"])
    cells = [
        [
            row["name"],
            number(row["quality"]["accuracy"], 2, 100),
            number(row["quality"]["macro_f1"], 2, 100),
            number(row["file_bytes"], 0),
            number(row["latency_ms"]["p50"], 3),
            number(row["latency_ms"]["p95"], 3),
            number(row["throughput_per_s"], 0),
        ]
        for row in ranked
    ]
    lines = [*verdict(rows), *(f"{name}: could not be measured" for name in missing)]
    said = "\n".join(f"- {line}" for line in lines)
    return (
        f"{table(head, cells)}\n\nThe same fine-tuned teacher, {n:,} {split} texts, batch 1, one "
        f"thread, text in, label out, all in turn.\n\n{said}"
    )
