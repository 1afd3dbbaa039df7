"""The techniques that an ablation can switch off, one at a time: data, and which of them are on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.errors import UsageError
from tasks.paths import PLACEHOLDERS
from tasks.schema import Data, Distillation, Params

NONE = "none"
"""As ``--technique``: the full recipe alone."""
ALL_LAYERS = "{all_layers}"
"""Stands for the indices of all layers that the student's source has."""
STUDENTS = ("distill", "prune", "finetune")
"""Stages that train one."""


@dataclass(frozen=True)
class Technique:
    """One choice of the recipe, and what undoes it."""

    name: str
    meaning: str
    on: Callable[[Params], bool]
    """Whether it does anything in these params."""
    off: tuple[str, ...]
    """``section.key=value`` that switch it off and nothing else."""


def _either(key: str) -> Callable[[Params], bool]:
    """A term of the objective has weight in a stage that trains."""
    return lambda params: any(getattr(stage, key) > 0 for stage in _learning(params))


def _learning(params: Params) -> list[Distillation]:
    """The objectives that something is trained by; prune's recovery has that of finetune."""
    prune = params.prune
    trains = prune.rounds > 1 or prune.sparsity.method in ("magnitude", "lottery")
    recovers = params.finetune.enabled or (prune.enabled and trains)
    return [params.distill] * params.distill.enabled + [params.finetune] * recovers


def _alphas(params: Params) -> list[float]:
    """Every weight that the hard labels have at some time, in stages that train."""
    return [a for s in _learning(params) for a in (s.alpha, s.alpha_end) if a is not None]


def _soft(params: Params) -> bool:
    return min(_alphas(params), default=1.0) < 1


def _hard(params: Params) -> bool:
    return max(_alphas(params), default=0.0) > 0


def _annealed(params: Params) -> bool:
    ends = [(s.temperature_end, s.alpha_end) for s in _learning(params)]
    return any(end is not None for pair in ends for end in pair)


def _grows(params: Params) -> bool:
    return any(s.growth > 0 and (s.states > 0 or s.attention > 0) for s in _learning(params))


def _budgeted(params: Params) -> bool:
    budget = params.prune.budget
    return params.prune.enabled and bool(budget.bytes or budget.flops or budget.latency_ms)


def _cuts_width(params: Params) -> bool:
    prune = params.prune
    shares = (prune.ffn_keep, prune.heads_keep, prune.hidden_keep)
    return prune.enabled and (_budgeted(params) or min(shares) < 1)


def _quantised(params: Params) -> bool:
    return params.quantize.scheme != "none"


def _fewer_layers(params: Params) -> bool:
    """Possibly: only the source's layer count can tell, see `switchable`."""
    return params.distill.enabled and params.distill.student.source not in ("fresh", "run")


def _further_texts(data: Data) -> bool:
    """A package's are fetched where the data is a package's, too."""
    of_package = data.source == "package" and bool(data.package.unlabelled)
    return of_package or data.unlabelled not in PLACEHOLDERS


def _stops_early(params: Params) -> bool:
    stages = [s for s in (params.distill, params.prune, params.finetune) if s.enabled]
    return any(s.training.patience > 0 for s in stages)


def _both(*settings: str) -> tuple[str, ...]:
    return tuple(f"{stage}.{one}" for stage in ("distill", "finetune") for one in settings)


LAYERS = Technique(
    "layers", "fewer layers than the source: all of them are kept", _fewer_layers,
    (f"distill.layers={ALL_LAYERS}", "distill.assistants=[]"),
)  # fmt: skip
TECHNIQUES = (
    Technique("augmentation", "altered copies of the texts: none are made",
              lambda p: p.teach.augment.copies > 0, ("teach.augment.copies=0",)),
    Technique("unlabelled", "texts without labels: they are left out",
              lambda p: _further_texts(p.data),
              ("data.unlabelled=data/own/unlabelled", "data.package.unlabelled=[]")),
    Technique("writer", "texts that a decoder writes: none are written",
              lambda p: p.teach.writer.enabled,
              ("teach.writer.enabled=false", "teach.writer.source=package")),
    Technique("teachers", "several teachers: one alone is asked",
              lambda p: p.teach.teachers not in PLACEHOLDERS,
              ("teach.teachers=data/own/teachers",)),
    Technique("second-teacher", "the student's own model as second teacher: it is not asked",
              lambda p: p.teach.second.enabled, ("teach.second.enabled=false",)),
    Technique("soft-labels", "the teacher's logits: hard labels only",
              _soft, _both("alpha=1.0", "alpha_end=null")),
    Technique("hard-labels", "the labels themselves: the teacher's logits only",
              _hard, _both("alpha=0.0", "alpha_end=null")),
    Technique("annealing", "schedules of temperature and alpha: both stay as they begin",
              _annealed, _both("temperature_end=null", "alpha_end=null")),
    Technique("states", "matched hidden states: weight 0", _either("states"),
              _both("states=0.0")),
    Technique("attention", "matched attention: weight 0", _either("attention"),
              _both("attention=0.0")),
    Technique("embeddings", "matched embeddings: weight 0", _either("embeddings"),
              _both("embeddings=0.0")),
    Technique("contrastive", "the contrastive term: weight 0", _either("contrastive"),
              _both("contrastive=0.0")),
    Technique("growth", "matched layers that grow in number: all from the start",
              _grows, _both("growth=0.0")),
    LAYERS,
    Technique("vocabulary", "trimmed vocabulary: all pieces are kept",
              lambda p: p.distill.enabled and p.distill.vocabulary.trim,
              ("distill.vocabulary.trim=false",)),
    Technique("assistants", "models between teacher and student: none",
              lambda p: p.distill.enabled and bool(p.distill.assistants),
              ("distill.assistants=[]",)),
    Technique("averaging", "students of several seeds, averaged: one",
              lambda p: p.distill.enabled and p.distill.students > 1, ("distill.students=1",)),
    Technique("ffn", "feed-forward pruning: all neurons are kept",
              lambda p: p.prune.enabled and p.prune.ffn_keep < 1 and not _budgeted(p),
              ("prune.ffn_keep=1.0",)),
    Technique("heads", "head pruning: all attention heads are kept",
              lambda p: p.prune.enabled and p.prune.heads_keep < 1 and not _budgeted(p),
              ("prune.heads_keep=1.0",)),
    Technique("budget", "heads and neurons cut to a budget: all are kept", _budgeted,
              ("prune.budget.bytes=0", "prune.budget.flops=0", "prune.budget.latency_ms=0.0",
               "prune.ffn_keep=1.0", "prune.heads_keep=1.0")),
    Technique("hidden", "narrower hidden width: all channels are kept",
              lambda p: p.prune.enabled and p.prune.hidden_keep < 1, ("prune.hidden_keep=1.0",)),
    Technique("drop-layers", "layers pruned: none goes",
              lambda p: p.prune.enabled and p.prune.drop_layers > 0, ("prune.drop_layers=0",)),
    Technique("importance", "chosen by importance: at random",
              lambda p: _cuts_width(p) and p.prune.importance != "random",
              ("prune.importance=random",)),
    Technique("global-scope", "layers compete: all are cut alike",
              lambda p: _cuts_width(p) and not _budgeted(p) and p.prune.scope == "global",
              ("prune.scope=layer",)),
    Technique("rounds", "several rounds of cuts: a single shot",
              lambda p: p.prune.enabled and p.prune.rounds > 1, ("prune.rounds=1",)),
    Technique("factorisation", "factorised word table: it stays whole",
              lambda p: p.prune.enabled and p.prune.embedding_rank > 0,
              ("prune.embedding_rank=0",)),
    Technique("sparsity", "single weights set to zero: none",
              lambda p: p.prune.enabled and p.prune.sparsity.method != "none",
              ("prune.sparsity.method=none",)),
    Technique("recovery", "training after pruning: none",
              lambda p: p.finetune.enabled, ("finetune.enabled=false",)),
    Technique("early-stopping", "training that stops by itself: every stage goes to its end",
              _stops_early, tuple(f"{stage}.training.patience=0" for stage in STUDENTS)),
    Technique("rewinding", "learning-rate rewinding: finetune's own rate",
              lambda p: p.finetune.enabled and p.finetune.rewind, ("finetune.rewind=false",)),
    Technique("exits", "early exits: every text goes to the end",
              lambda p: bool(p.exits.layers), ("exits.layers=[]",)),
    Technique("int8", "int8 weights: fp32", _quantised, ("quantize.scheme=none",)),
    Technique("aware", "training with simulated int8: after training alone",
              lambda p: _quantised(p) and p.quantize.aware.mode == "always",
              ("quantize.aware.mode=never",)),
    Technique("int8-embeddings", "int8 embedding tables: fp32",
              lambda p: _quantised(p) and p.quantize.embeddings, ("quantize.embeddings=false",)),
    Technique("per-channel", "a scale for each channel: one for each matrix",
              lambda p: _quantised(p) and p.quantize.per_channel,
              ("quantize.per_channel=false",)),
)  # fmt: skip
"""In the order of the chain. Distillation as a whole is not among them: without its training
there is no student that could be pruned; nor is calibrated confidence, which changes no answer,
byte or millisecond: its worth is the calibration error in the report."""
BY_NAME = {technique.name: technique for technique in TECHNIQUES}


def check_names(wanted: Sequence[str], params: Params) -> None:
    """Refuse what cannot be asked for.

    Raises:
        UsageError: a technique is unknown, or not on in these params; names those that are.
    """
    on = [technique.name for technique in TECHNIQUES if technique.on(params)]
    for name in wanted:
        if name not in (*BY_NAME, NONE):
            known = ", ".join([*BY_NAME, NONE])
            raise UsageError(
                f"--technique: found {name!r}, expected one of {known}",
                next_command="stillroom ablate --dry-run",
            )
        if name not in (*on, NONE):
            raise UsageError(
                f"--technique: {name} is not on in this recipe, expected one of "
                f"{', '.join([*on, NONE])}",
                next_command="stillroom ablate --dry-run",
            )


def switchable(
    params: Params, wanted: Sequence[str], source_layers: int | None
) -> tuple[list[tuple[Technique, tuple[str, ...]]], dict[str, str]]:
    """Which techniques are on, and what switches each off.

    Args:
        params: of the full recipe.
        wanted: names; none at all means every technique that is on.
        source_layers: layers of the model that the student is cut from; None where unknown.

    Returns:
        Techniques with their overrides, and why what is left out is left out, by name.
    """
    found, left_out = [], {}
    for technique in TECHNIQUES:
        if not technique.on(params) or (wanted and technique.name not in wanted):
            continue
        off = technique.off
        if technique is LAYERS:
            if source_layers is None:
                left_out[technique.name] = "the source's layers are not counted before fetch ran"
                continue
            if len(params.distill.layers) >= source_layers:
                if wanted:
                    left_out[technique.name] = f"all {source_layers} layers are kept already"
                continue
            every = str(list(range(source_layers)))
            needed = off if params.distill.assistants else off[:1]
            off = tuple(text.replace(ALL_LAYERS, every) for text in needed)
        found.append((technique, off))
    return found, left_out
