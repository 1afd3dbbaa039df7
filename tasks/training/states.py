"""Terms of distillation that look inside: hidden states, attention, embeddings, text vectors.

Both models run in the training step; nothing of the teacher's inside is cached. States are
compared word by word (`tasks.training.alignment`), layer by layer of the uniform map
(`layer_map`), in fp32 whatever the models compute in.

    matching = StateMatching(student, teacher, config)     # its parameters are trained, too
    kwargs = forward_kwargs(config)                        # for both models' forward pass
    loss = matching(student_out, teacher_out, student_words, teacher_words, progress)
    matching.close()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from tasks import schema
from tasks.modeling.architecture import architecture_of, layers_of, linear
from tasks.modeling.surgery import shapes_of
from tasks.training.alignment import align, pool, pool_attention
from tasks.training.contrastive import TextContrast
from tasks.training.distances import (
    embedding_distance,
    map_distance,
    relation_distance,
    state_distance,
)


def needs_teacher(config: schema.Distillation) -> bool:
    """Whether the teacher has to run in the training step."""
    return any((config.states, config.attention, config.embeddings, config.contrastive))


def forward_kwargs(config: schema.Distillation) -> dict[str, bool]:
    """What both models' forward pass has to be asked for."""
    kwargs = {}
    if config.states or config.embeddings or config.contrastive:
        kwargs["output_hidden_states"] = True
    if config.attention and config.attention_form == "maps":
        kwargs["output_attentions"] = True
    return kwargs


def layer_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layer for each of the student's, both from 0, evenly spread, last to last.

    The uniform strategy of Jiao et al. 2020, "TinyBERT", for any pair of depths:
    round((j + 1) · T / S) − 1, halves up, and the first layer where a deeper student would
    fall below it.
    """
    t, s = teacher_layers, student_layers
    return tuple(max((2 * (j + 1) * t + s) // (2 * s) - 1, 0) for j in range(s))


def matched_layers(layers: int, growth: float, progress: float) -> int:
    """How many of the student's layers are matched at `progress`, a share of the steps.

    From the first upwards, all once `progress` reaches `growth`: progressive knowledge
    transfer as in Sun et al. 2020, "MobileBERT", though layers that are matched stay matched.
    """
    if progress >= growth:
        return layers
    return max(1, math.ceil(layers * progress / growth - 1e-9))


def relation_heads(student_width: int, teacher_width: int, most: int) -> int:
    """The largest number up to `most` that divides both widths."""
    common = math.gcd(student_width, teacher_width)
    return max(n for n in range(1, most + 1) if common % n == 0)


class StateMatching(nn.Module):
    """The sum of the terms that have a weight; holds projections and hooks, no model.

    Where widths differ, the student's states are projected to the teacher's width, each layer
    by a matrix of its own and the embeddings by another (TinyBERT, W_h and W_e); where they
    agree there is nothing to learn. Initial values come from torch's seed. The projections
    must be given to the optimiser, and no gradient reaches the teacher.

    Attention `maps` are compared head by head where both models were built with the same
    number of heads, a cut student's with the same ones of the teacher; else the averages over
    the heads are. `relations` are those of the last layer that is matched.

    Run the teacher in eval mode under `torch.no_grad` (its outputs enter autograd, which
    `inference_mode` forbids). Copy or save the models after `close()`.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, config: schema.Distillation) -> None:
        super().__init__()
        self.config = config
        self.pairs = layer_map(len(layers_of(student)), len(layers_of(teacher)))
        widths = _width(student), _width(teacher)
        self.hidden = nn.ModuleList(_projection(*widths) for _ in self.pairs if config.states)
        self.embeddings = _projection(*widths) if config.embeddings else None
        self.contrast = TextContrast(*widths) if config.contrastive else None
        self._causal = architecture_of(student).causal, architecture_of(teacher).causal
        self._heads: list[list[int] | None] = [
            _same_heads(student, j, teacher, t) for j, t in enumerate(self.pairs)
        ]
        self._relation_limit = max(len(shape.heads) for shape in shapes_of(teacher))
        self._captured: tuple[_Captured, _Captured] | None = None
        if config.attention and config.attention_form == "relations":
            # with growth the last matched layer moves up, so any may be asked for
            first = 0 if config.growth else len(self.pairs) - 1
            self._captured = (
                _Captured(student, range(first, len(self.pairs))),
                _Captured(teacher, self.pairs[first:]),
            )
        self.to(next(student.parameters()).device)

    def forward(
        self,
        student_out: SequenceClassifierOutput,
        teacher_out: SequenceClassifierOutput,
        student_words: torch.Tensor,
        teacher_words: torch.Tensor,
        progress: float,
    ) -> torch.Tensor:
        """The weighted sum of `terms`, a scalar."""
        total = torch.zeros((), device=student_words.device)
        terms = self.terms(student_out, teacher_out, student_words, teacher_words, progress)
        for name, value in terms.items():
            total = total + getattr(self.config, name) * value
        return total

    def terms(
        self,
        student_out: SequenceClassifierOutput,
        teacher_out: SequenceClassifierOutput,
        student_words: torch.Tensor,
        teacher_words: torch.Tensor,
        progress: float,
    ) -> dict[str, torch.Tensor]:
        """Each term that has a weight, by its key in params, unweighted.

        Args:
            student_out, teacher_out: of forward passes with `forward_kwargs`.
            student_words: ``[batch, student pieces]``, see `tasks.training.alignment.word_ids`.
            teacher_words: ``[batch, teacher pieces]``.
            progress: share of the steps that are done.
        """
        config = self.config
        words = _Words(student_words, teacher_words)
        layers = matched_layers(len(self.pairs), config.growth, progress)
        terms = {}
        with torch.autocast(student_words.device.type, enabled=False):
            if config.states:
                terms["states"] = self._states(student_out, teacher_out, words, layers)
            if self._captured:
                terms["attention"] = self._relations(*self._captured, words, layers - 1)
            elif config.attention:
                terms["attention"] = self._maps(student_out, teacher_out, words, layers)
            if self.embeddings is not None:
                mine, theirs = words.pooled(_hidden(student_out)[0], _hidden(teacher_out)[0])
                terms["embeddings"] = embedding_distance(
                    self.embeddings(mine), theirs, words.shared
                )
            if self.contrast is not None:
                mine = _speaking(student_out, student_words, self._causal[0])
                theirs = _speaking(teacher_out, teacher_words, self._causal[1])
                terms["contrastive"] = self.contrast(mine.float(), theirs.detach().float())
        return terms

    def close(self) -> None:
        """Take the hooks off both models."""
        for captured in self._captured or ():
            captured.close()

    def _states(
        self,
        student: SequenceClassifierOutput,
        teacher: SequenceClassifierOutput,
        words: _Words,
        layers: int,
    ) -> torch.Tensor:
        """Mean over the matched layers; ``hidden_states[0]`` is the embeddings' output."""
        losses = []
        for j, project in enumerate(self.hidden[:layers]):
            mine, theirs = words.pooled(
                _hidden(student)[j + 1], _hidden(teacher)[self.pairs[j] + 1]
            )
            losses.append(state_distance(project(mine), theirs, words.shared))
        return torch.stack(losses).mean()

    def _maps(
        self,
        student: SequenceClassifierOutput,
        teacher: SequenceClassifierOutput,
        words: _Words,
        layers: int,
    ) -> torch.Tensor:
        """Mean over the matched layers."""
        losses = []
        for j, heads in enumerate(self._heads[:layers]):
            mine, theirs = _maps(student)[j], _maps(teacher)[self.pairs[j]]
            if heads is None:
                mine, theirs = mine.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
            else:
                each = mine.shape[1] // len(heads)  # with grouped queries several read one key
                theirs = theirs.unflatten(1, (-1, each))[:, heads].flatten(1, 2)
            mine, theirs = words.pooled(mine, theirs, pool_attention)
            losses.append(map_distance(mine, theirs, words.shared))
        return torch.stack(losses).mean()

    def _relations(
        self, student: _Captured, teacher: _Captured, words: _Words, layer: int
    ) -> torch.Tensor:
        """Mean over queries, keys and values of one layer."""
        losses = []
        for own, other in zip(student.take(layer), teacher.take(self.pairs[layer]), strict=True):
            mine, theirs = words.pooled(own, other)
            heads = relation_heads(mine.shape[-1], theirs.shape[-1], self._relation_limit)
            losses.append(relation_distance(mine, theirs, words.shared, heads))
        return torch.stack(losses).mean()


class _Words:
    """The words of a batch on both sides, and which of them both have."""

    def __init__(self, student: torch.Tensor, teacher: torch.Tensor) -> None:
        self._student, self._teacher = student, teacher
        self.shared = align(student, teacher)

    def pooled(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        how: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor] = pool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both sides' values for words instead of pieces, fp32; the teacher's detached."""
        count = self.shared.shape[1]
        return (
            how(student.float(), self._student, count),
            how(teacher.detach().float(), self._teacher, count),
        )


class _Captured:
    """Query, key and value projections of some layers as the last forward pass made them."""

    def __init__(self, model: nn.Module, layers: Iterable[int]) -> None:
        arch = architecture_of(model)
        self._last: dict[int, dict[str, torch.Tensor]] = {}
        self._names = (arch.query, arch.key, arch.value)
        self._hooks = [
            linear(layers_of(model)[index], name).register_forward_hook(self._keep(index, name))
            for index in set(layers)
            for name in self._names
        ]

    def take(self, layer: int) -> list[torch.Tensor]:
        """Three tensors ``[batch, pieces, channels]``; whatever was kept is let go."""
        kept, self._last = self._last, {}
        if layer not in kept:
            raise RuntimeError("found no projections, expected both models to run before the loss")
        return [kept[layer][name] for name in self._names]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._last = {}

    def _keep(self, layer: int, name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            self._last.setdefault(layer, {})[name] = output

        return hook


def _projection(student_width: int, teacher_width: int) -> nn.Module:
    if student_width == teacher_width:
        return nn.Identity()
    return nn.Linear(student_width, teacher_width, bias=False)


def _width(model: nn.Module) -> int:
    """Channels of the hidden state, as they are now, whatever the config says."""
    return linear(layers_of(model)[0], architecture_of(model).ffn_out).out_features


def _same_heads(student: Any, layer: int, teacher: Any, other: int) -> list[int] | None:
    """Positions in the teacher's layer of the heads (with grouped queries: of the groups) that
    the student has; None: incomparable."""
    if _built_heads(student) != _built_heads(teacher):
        return None
    mine, theirs = shapes_of(student)[layer].heads, shapes_of(teacher)[other].heads
    return [theirs.index(head) for head in mine] if set(mine) <= set(theirs) else None


def _built_heads(model: Any) -> tuple[int, int]:
    """Queries and keys of a layer before any cut."""
    queries = model.config.num_attention_heads
    return queries, getattr(model.config, "num_key_value_heads", None) or queries


def _speaking(out: SequenceClassifierOutput, words: torch.Tensor, causal: bool) -> torch.Tensor:
    """The state that stands for a text ``[batch, channels]``: the first piece's, or the last
    word's last piece's where a piece sees only those before it.

    Args:
        words: ``[batch, pieces]``, -1 where a piece is of no word.
    """
    last = _hidden(out)[-1]
    if not causal:
        return last[:, 0]
    places = torch.arange(words.shape[1], device=words.device) * (words >= 0)
    return last[torch.arange(len(last), device=words.device), places.amax(1)]


def _hidden(out: SequenceClassifierOutput) -> tuple[torch.Tensor, ...]:
    assert out.hidden_states is not None, "run the model with forward_kwargs(config)"
    return out.hidden_states


def _maps(out: SequenceClassifierOutput) -> tuple[torch.Tensor, ...]:
    assert out.attentions is not None, "run the model with forward_kwargs(config)"
    return out.attentions
