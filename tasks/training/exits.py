"""Train early exits by self-distillation: heads before the last layer learn its answers.

The two steps of Xin et al. 2020 (DeeBERT, arXiv:2004.12993, section 3.2): the model first, then
the heads with the model frozen, so that the answer at full depth stays what it was, bit for bit.
The objective is that of Liu et al. 2020 (FastBERT, arXiv:2004.02178, section 3.3): the divergence
from the model's own last distribution, at temperature 1, since a head's softmax is the confidence
that it stops by. It needs no labels, so every text that the teacher was asked serves. Both descend
from BranchyNet (Teerapittayanon et al. 2016, arXiv:1709.01686), which trains all exits and the
trunk at once and weighs them; with a frozen trunk no exit touches another, and weights would change
nothing.

FastBERT has the divergence of the head from the model, here it is that of the model from the head:
over a linear head and fixed states this is convex, and L-BFGS finds its minimum with no learning
rate, no epochs and no seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

from tasks.evaluation.quality import accuracy
from tasks.modeling.exits import Exits, pooled, save_exits, states_after
from tasks.paths import TEACHER_LOGITS, TRAIN, VALIDATION
from tasks.problems.classification import Row, batches, encode, read_split
from tasks.stage import say
from tasks.training.logit_cache import asked_texts

STEPS = 200
"""Of L-BFGS at most; it stops where the loss does not fall."""
FLOOR = 0.1
"""Least deviation by which a channel is divided, of the deviations' root mean square. One that
hardly varies would be blown up, and with it what rounding and int8 add to it."""
PENALTIES = (1e-4, 1e-3, 1e-2)
"""Of a head's squared weights over standardised states; validation chooses."""


@dataclass(frozen=True)
class Seen:
    """What a model makes of some texts."""

    states: dict[int, torch.Tensor]
    """Pooled ``[texts, channels]``, by the number of layers that have run."""
    logits: torch.Tensor
    """At full depth, ``[texts, classes]``."""


def add_exits(
    model: nn.Module, tokenizer: Tokenizer, folder: Path, layers: Sequence[int]
) -> dict[str, Any]:
    """Train exits of a checkpoint and save them in its folder.

    Returns what ``metrics/finetune.json`` says of them.
    """
    validation = read_split(VALIDATION)
    model.eval()
    held = look(model, encode(tokenizer, validation.texts), layers)
    seen = encode(tokenizer, asked_texts(TRAIN, TEACHER_LOGITS))
    exits = fit_exits(look(model, seen, layers), held)
    save_exits(exits, folder)
    rows = []
    for layer, logits in zip(exits.layers, exits.answer(held.states), strict=True):
        found = {
            "layer": layer,
            "accuracy": accuracy(logits.numpy(), validation.labels),
            "kl": float(divergence(held.logits, logits)),
        }
        say(f"finetune: exit after layer {layer}: accuracy {found['accuracy']:.4f}, "
            f"KL {found['kl']:.4f} to full depth")  # fmt: skip
        rows.append(found)
    return {"exits": rows}


@torch.no_grad()
def look(model: nn.Module, ids: Sequence[Row], layers: Sequence[int]) -> Seen:
    """What a model in eval mode makes of texts, in their order, given their piece ids."""
    device = next(model.parameters()).device
    order: list[np.ndarray] = []
    states: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    logits: list[torch.Tensor] = []
    with states_after(model, layers) as found:
        for where, batch, mask in batches(ids, model.config.pad_token_id):  # type: ignore[union-attr,arg-type]
            batch, mask = batch.to(device), mask.to(device)
            logits.append(model(input_ids=batch, attention_mask=mask).logits.float().cpu())
            for layer in layers:
                states[layer].append(pooled(model, found[layer], mask).float().cpu())
            order.append(where)
    back = torch.from_numpy(np.argsort(np.concatenate(order)))
    return Seen({n: torch.cat(rows)[back] for n, rows in states.items()}, torch.cat(logits)[back])


def fit_exits(train: Seen, validation: Seen) -> Exits:
    """Heads with the least divergence from full depth on validation, over `PENALTIES`."""
    heads = {}
    for layer, states in train.states.items():
        tried = [fit_head(states, train.logits, penalty) for penalty in PENALTIES]
        heads[layer] = min(
            tried,
            key=lambda head: float(divergence(validation.logits, head(validation.states[layer]))),
        )
    return Exits(heads).eval()


def fit_head(states: torch.Tensor, logits: torch.Tensor, penalty: float) -> nn.Linear:
    """The linear head whose answers diverge least from given ones.

    It minimises KL(softmax(logits) ‖ softmax(head)) + penalty / 2 · ‖W‖², W over standardised
    states; what standardises them is folded into the head that is returned.

    Args:
        states: ``[texts, channels]``.
        logits: ``[texts, classes]``, what is to be matched.
    """
    mean, scale = states.mean(0), states.std(0, correction=0)
    scale = scale.clamp(min=max(float(FLOOR * scale.square().mean().sqrt()), 1e-6))
    inputs = (states - mean) / scale
    head = nn.Linear(states.shape[1], logits.shape[1])
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    optimiser = torch.optim.LBFGS(
        head.parameters(), max_iter=STEPS, tolerance_grad=1e-5, tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = divergence(logits, head(inputs)) + penalty / 2 * head.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        head.weight.div_(scale)
        head.bias.sub_(head.weight @ mean)
    return head.requires_grad_(False)


def divergence(logits: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """KL(logits ‖ found) of the answers' distributions, mean per text, in nats."""
    target = F.log_softmax(logits, dim=-1)
    return F.kl_div(F.log_softmax(found, dim=-1), target, reduction="batchmean", log_target=True)
