"""A copy of the weights from early in training, which lottery tickets are rewound to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import TrainerCallback


class KeepEarly(TrainerCallback):
    """Saves the weights once, after a share of the steps.

    Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis": tickets
    of larger networks are found when rewound not to the start but to a little after it.
    """

    def __init__(self, path: Path, share: float) -> None:
        self._path, self._share = path, share

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == max(round(self._share * state.max_steps), 1):
            weights = given["model"].state_dict()
            kept = {
                name: tensor.contiguous()
                for name, tensor in weights.items()
                if not name.startswith("objective.")
            }
            self._path.parent.mkdir(parents=True, exist_ok=True)
            save_file(kept, self._path, metadata={"format": "pt"})
