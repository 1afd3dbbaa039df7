"""Load one model and answer one text: what a cold start is measured on.

    python -m tasks.evaluation.answer_once servable data/models/deploy FILE 64

answers the text in FILE, cut off at 64 pieces.

Nothing is imported that the kind of model does not need.
"""

from __future__ import annotations

import sys
from pathlib import Path

KINDS = ("servable", "checkpoint", "linear")


def answer(kind: str, path: Path, text: str, max_length: int) -> str:
    """The label that the model at ``path`` gives to ``text``.

    Raises:
        ValueError: the kind is none of `KINDS`.
    """
    if kind == "servable":
        from tasks.release.servable import Servable

        return Servable(path, threads=1).predict([text])[0].label
    if kind == "checkpoint":
        from tasks.runtimes.pytorch import PyTorchRuntime

        return str(PyTorchRuntime(path, max_length=max_length, threads=1).predict([text])[0])
    if kind == "linear":
        from tasks.evaluation.linear import LinearModel

        return LinearModel.load(path).predict([text])[0]
    raise ValueError(f"found kind {kind!r}, expected one of {', '.join(KINDS)}")


if __name__ == "__main__":
    words = Path(sys.argv[3]).read_text("utf-8")
    print(answer(sys.argv[1], Path(sys.argv[2]), words, int(sys.argv[4])))
