"""Load one model and answer one text: what a cold start is measured on.

    python -m tasks.evaluation.answer_once servable data/models/deploy "where is my card"

Nothing is imported that the kind of model does not need.
"""

from __future__ import annotations

import sys
from pathlib import Path

KINDS = ("servable", "checkpoint", "linear")


def answer(kind: str, path: Path, text: str) -> str:
    """The label that the model at ``path`` gives to ``text``.

    Raises:
        ValueError: the kind is none of `KINDS`.
    """
    if kind == "servable":
        from tasks.release.servable import Servable

        return Servable(path, threads=1).predict([text])[0].label
    if kind == "checkpoint":
        from tasks.runtimes.pytorch import PyTorchRuntime

        return str(PyTorchRuntime(path, threads=1).predict([text])[0])
    if kind == "linear":
        from tasks.evaluation.linear import LinearModel

        return LinearModel.load(path).predict([text])[0]
    raise ValueError(f"found kind {kind!r}, expected one of {', '.join(KINDS)}")


if __name__ == "__main__":
    print(answer(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
