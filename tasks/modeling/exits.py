"""Early exits of a classifier: linear heads that read its state before the last layer.

    exits.safetensors   beside model.safetensors: ``heads.<layers run>.{weight,bias}``

A checkpoint without the file has none. A head reads the mean of a text's pieces, or the last piece
through the model's final norm where a piece sees those before it only. The first piece, which a
classifier reads at the end, has gathered little after one layer: in a small student it hardly
varied from text to text, and a head that tells such states apart blows rounding up
(infra/decisions/early-exits.md).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tasks.errors import IntegrityError, ParamsError
from tasks.modeling.architecture import architecture_of, encoder_of, layers_of, linear
from tasks.modeling.checkpoint import EXITS_FILE
from tasks.modeling.surgery import hidden_size


class Exits(nn.Module):
    """One linear head after each of some layers, by the number of layers that have run."""

    def __init__(self, heads: Mapping[int, nn.Linear]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({str(layer): heads[layer] for layer in sorted(heads)})

    @property
    def layers(self) -> tuple[int, ...]:
        """How many layers have run at each exit, ascending."""
        return tuple(int(layer) for layer in self.heads)

    def forward(
        self, model: nn.Module, states: Mapping[int, torch.Tensor], mask: torch.Tensor
    ) -> list[torch.Tensor]:
        """Logits ``[batch, classes]`` of each exit, from what `states_after` kept."""
        return self.answer({n: pooled(model, states[n], mask) for n in self.layers})

    def answer(self, read: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """The same from pooled states ``[batch, channels]``."""
        return [self.heads[str(n)](read[n]) for n in self.layers]


def pooled(model: nn.Module, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What speaks for a text, ``[batch, channels]``, of states ``[batch, pieces, channels]``.

    Args:
        mask: ``[batch, pieces]``, 1 for pieces of the text; padding follows it.
    """
    arch = architecture_of(model)
    if not arch.causal:
        weight = mask[:, :, None].to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1)
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(-1)
    norm = encoder_of(model).get_submodule(arch.norm)
    found: torch.Tensor = norm(states[torch.arange(states.shape[0], device=states.device), last])
    return found


@contextlib.contextmanager
def states_after(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """The states of the last forward pass, by the number of layers that had run."""
    found: dict[int, torch.Tensor] = {}

    def keep(count: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[count] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [layers_of(model)[n - 1].register_forward_hook(keep(n)) for n in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def require_exits(layers: Sequence[int], available: int) -> None:
    """Refuse an exit that is not before the last layer."""
    if layers and max(layers) >= available:
        raise ParamsError(
            f"exits.layers: found {list(layers)}, expected numbers under {available}, the layers "
            "of the pruned model",
            next_command="stillroom compress --set 'exits.layers=[1]'",
        )


def save_exits(exits: Exits, folder: Path) -> None:
    """Write the heads beside the weights of a checkpoint."""
    state = {name: tensor.contiguous().cpu() for name, tensor in exits.state_dict().items()}
    save_file(state, folder / EXITS_FILE, metadata={"format": "pt"})


def load_exits(folder: Path, model: nn.Module) -> Exits | None:
    """The exits of a checkpoint, strictly, in eval mode; None where it has none.

    Raises:
        IntegrityError: they do not fit the model.
    """
    path = folder / EXITS_FILE
    if not path.exists():
        return None
    classes = linear(model, architecture_of(model).head[-1]).out_features
    try:
        state = load_file(path)
        counts = {int(found[1]) for name in state if (found := re.match(r"heads\.(\d+)\.", name))}
        if not counts or not 1 <= min(counts) <= max(counts) < len(layers_of(model)):
            raise ValueError(f"found exits after {sorted(counts)} layers")
        exits = Exits({n: nn.Linear(hidden_size(model), classes) for n in counts})
        exits.load_state_dict(state, strict=True)
    except Exception as error:  # whatever a broken file makes of the library below
        raise IntegrityError(
            f"{path}: the exits do not fit the model ({str(error).splitlines()[-1].strip()})",
            next_command="dvc checkout",
        ) from error
    return exits.eval()
