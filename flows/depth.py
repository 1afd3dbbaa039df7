"""Whether the fetched model has the layers that params name, before any is trained."""

from __future__ import annotations

from pathlib import Path

from tasks.errors import ParamsError
from tasks.schema import Params
from tasks.stage_files import read_json


def require_depth(root: Path, params: Params) -> None:
    """Refuse layers that the fetched model has not.

    The stages do, too, but the first of them only when the teacher has been trained.

    Raises:
        ParamsError: an index is none of a layer's, or an exit not before the last one.
    """
    distill, source = params.distill, params.distill.student.source
    if distill.enabled and source in ("fresh", "run"):
        return
    folder = "student" if distill.enabled and source != "teacher" else "pretrained"
    config = read_json(root / "data" / folder / "config.json")
    there = config.get("num_hidden_layers", config.get("n_layers"))  # DistilBERT's name for it
    if not isinstance(there, int):
        return
    asked = [*distill.layers, *(layer for one in distill.assistants for layer in one)]
    if distill.enabled and max(asked) >= there:
        raise ParamsError(
            f"distill.layers: found {max(asked)}, expected indices under {there}, the number of "
            "layers of the model that the student starts from",
            next_command=f"stillroom compress --set 'distill.layers=[0, {there - 1}]'",
        )
    left = len(distill.layers) if distill.enabled else there
    if params.prune.enabled:
        if params.prune.drop_layers >= left:
            raise ParamsError(
                f"prune.drop_layers: found {params.prune.drop_layers}, expected a number under "
                f"{left}, the layers of the student",
                next_command=f"stillroom compress --set prune.drop_layers={left - 1}",
            )
        left -= params.prune.drop_layers
    if params.exits.layers and max(params.exits.layers) >= left:
        raise ParamsError(
            f"exits.layers: found {list(params.exits.layers)}, expected numbers under {left}, the "
            "layers of the pruned model",
            next_command="stillroom compress --set 'exits.layers=[1]'",
        )
