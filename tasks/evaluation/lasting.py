"""The part of the evidence that lasts: what depends on the model and the data alone.

It goes into `metrics/validate.json`, so that `deploy` can put it on the model card and the same
model keeps the same card. Nothing that a clock or a power meter said is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WHOLE = ("flips", "robustness", "ood", "slices", "counterfactual", "memorisation", "long_texts",
         "scripts", "vocabulary", "small_slices")  # fmt: skip
WORST = 5
"""Classes and confusions that are kept, those that lost most."""


def lasting(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the model card is told.

    Args:
        summary: as `reports/summary.json`, with or without ``evidence``.

    Returns:
        ``flops`` by stage, and of ``evidence`` what was measured and no clock had a hand in:
        classes by recall lost, the worst first.
    """
    evidence = summary.get("evidence") or {}
    kept: dict[str, Any] = {
        "flops": {row["stage"]: row["flops"] for row in summary["stages"]},
        **{name: evidence[name] for name in WHOLE if evidence.get(name)},
    }
    if classes := evidence.get("per_class"):
        kept["per_class"] = sorted(classes, key=lambda c: -(c["drop"] or 0))[:WORST]
    if confusions := evidence.get("confusions"):
        kept["confusions"] = list(confusions[:WORST])
    return kept
