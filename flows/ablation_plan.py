"""Which runs an ablation is made of: the full recipe, and the recipe without one technique each.

Stage limits stop a ruined model early. An ablation wants it measured, so for the stages
that a technique changes, and those after them, the limit is lifted. The stages before keep
the recipe's own: another limit would make DVC run them anew.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows import dvc
from flows.workspace import Workspace, resolve
from tasks import home
from tasks.errors import UsageError
from tasks.evaluation.techniques import Technique, switchable
from tasks.release.naming import model_name
from tasks.schema import Params
from tasks.stage_files import read_json

FULL = "full"
LIMITED = ("distill", "prune", "finetune")
"""Stages with a limit in ``gate.stage_drop``."""
TRAINING_METHODS = ("magnitude", "lottery")
"""Of ``prune.sparsity``: those that train, with `finetune`'s objective."""


UNASKED = ("evaluation.energy_seconds=0.0", "evaluation.evidence_texts=32",
           "evaluation.lengths=[]", "evaluation.batches=[1]")  # fmt: skip
"""What validate need not find out, since no table of an ablation has it: with a base model as
teacher that is half of its time."""


@dataclass(frozen=True)
class Asked:
    """What is to be ablated, as the command line said it."""

    recipe: str | None
    overrides: tuple[str, ...]
    seeds: int
    wanted: tuple[str, ...]
    """Names of techniques; none at all means every one that is on."""
    split: str

    def command(self, setting: str) -> str:
        """The same once more with one setting changed."""
        words = ["stillroom", "ablate", *(["--recipe", self.recipe] if self.recipe else [])]
        for text in (*self.overrides, setting):
            words += ["--set", text]
        for name in self.wanted:
            words += ["--technique", name]
        return shlex.join([*words, "--seeds", str(self.seeds), "--split", self.split])


@dataclass(frozen=True)
class Job:
    """One variant with one seed."""

    name: str
    """`FULL`, or the technique that is off."""
    seed: int
    settings: tuple[str, ...]
    workspace: Workspace
    first: str
    """The first stage that differs from the full recipe's; of that, from the recipe's own run."""

    def command(self, recipe: str | None) -> list[str]:
        """The words after ``stillroom``."""
        settings = [word for text in self.settings for word in ("--set", text)]
        return ["compress", *(["--recipe", recipe] if recipe else []), *settings, "--json"]


@dataclass(frozen=True)
class Plan:
    """The runs of one seed."""

    full: Job
    variants: tuple[Job, ...]
    """Those with least work first."""
    techniques: tuple[tuple[Technique, tuple[str, ...]], ...]
    """In the order of the chain, each with what switches it off."""
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Axis:
    """What the runs of one variant differ in."""

    name: str
    key: str
    """Of params."""
    own: int
    """The recipe's value of it."""
    first: str
    """The first stage that another value runs anew."""


def axis_of(params: Params) -> Axis:
    """The fold where there are folds, else the students' seed."""
    if params.data.folds:
        return Axis("fold", "data.fold", params.data.fold, "prepare")
    return Axis("seed", "student_seed", params.student_seed, "distill")


def seeds_of(asked: Asked, recipe_run: Workspace) -> list[int]:
    """Values along `axis_of`: every fold; or the recipe's own seed, and those that follow it.

    Raises:
        UsageError: seeds were asked for beside folds.
    """
    if folds := recipe_run.params.data.folds:
        if asked.seeds > 1:
            raise UsageError(
                f"--seeds: found {asked.seeds} with data.folds={folds}, expected one of the two",
                next_command="stillroom ablate --help",
            )
        return list(range(folds))
    return [recipe_run.params.student_seed + offset for offset in range(asked.seeds)]


def plan(asked: Asked, recipe_run: Workspace, seed: int) -> Plan:
    """Resolve every run of one seed; writes nothing.

    Args:
        asked: what the command line said.
        recipe_run: the recipe's own run, resolved.
        seed: value along `axis_of`.
    """
    keys = deciding_params(recipe_run.params)
    axis = axis_of(recipe_run.params)
    own = seed == axis.own
    settings: tuple[str, ...] = (
        *asked.overrides,
        f"{axis.key}={seed}",
        f"release.name=ablation-{model_name(recipe_run.params)}",
        *UNASKED,
    )
    first = first_changed(keys, recipe_run.params, resolve(asked.recipe, settings).params)
    if not own:  # its students are new in any case
        settings = (*settings, *lifted(keys, first))
    full = Job(FULL, seed, settings, resolve(asked.recipe, settings), first)
    found, left_out = switchable(
        recipe_run.params, asked.wanted, source_layers(full.workspace, recipe_run)
    )
    jobs = []
    for technique, off in found:
        words = (*settings, *off)
        workspace = resolve(asked.recipe, words)
        first = first_changed(keys, full.workspace.params, workspace.params)
        if own and (further := lifted(keys, first)):
            words = (*words, *further)
            workspace = resolve(asked.recipe, words)
        jobs.append(Job(technique.name, seed, words, workspace, first))
    jobs.sort(key=lambda job: -list(keys).index(job.first))
    return Plan(full, tuple(jobs), tuple(found), left_out)


def deciding_params(params: Params) -> dict[str, tuple[str, ...]]:
    """Keys that each stage's result depends on, in the order of ``dvc.yaml``, which has them.

    `prune` declares more than it reads in these params: ``finetune`` matters where it trains
    between cuts. Without, it runs again to the same bytes.
    """
    stages = yaml.safe_load((home.CHECKOUT / "dvc.yaml").read_text("utf-8"))["stages"]
    keys = {name: tuple(stage.get("params", ())) for name, stage in stages.items()}
    if params.prune.rounds == 1 and params.prune.sparsity.method not in TRAINING_METHODS:
        keys["prune"] = tuple(key for key in keys["prune"] if key != "finetune")
    return keys


def first_changed(keys: Mapping[str, Sequence[str]], before: Params, after: Params) -> str:
    """The first stage with a key whose value differs; the last stage where there is none."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    for name, ours in keys.items():
        if any(_at(old, key) != _at(new, key) for key in ours):
            return name
    return list(keys)[-1]


def lifted(stages: Iterable[str], first: str) -> tuple[str, ...]:
    """Settings that lift the limits of this stage and of those after it."""
    order = list(stages)
    later = order[order.index(first) :]
    return tuple(f"gate.stage_drop.{name}=100.0" for name in LIMITED if name in later)


def source_layers(full: Workspace, recipe_run: Workspace) -> int | None:
    """Layers of the model that the student is cut from; None before it has been fetched.

    Looked for in the full recipe's workspace, in the recipe's own, and in the checkout, which
    may hold another model: what was fetched is what its ``dvc.lock`` says.
    """
    from_teacher = recipe_run.params.distill.student.source == "teacher"
    folder = "pretrained" if from_teacher else "student"
    for root in (full.path, recipe_run.path, home.CHECKOUT):
        layers = read_json(root / "data" / folder / "config.json").get("num_hidden_layers")
        if isinstance(layers, int) and _fetched_for(recipe_run, dvc.locked(root)):
            return layers
    return None


def _fetched_for(wanted: Workspace, locked: Mapping[str, Any]) -> bool:
    """Whether a lock's fetch had the same models in its params."""
    params = locked.get("fetch", {}).get("params", {}).get("params.yaml", {})
    models = {k: v for k, v in params.items() if k.startswith(("teacher", "distill.student"))}
    return bool(models) and all(_at(wanted.content, key) == models[key] for key in models)


def _at(tree: Any, key: str) -> Any:
    """The value at a dotted key, None where there is none."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def remaining_s(
    firsts: Sequence[str], stages: Sequence[str], work_s: Mapping[str, float], overhead_s: float
) -> float:
    """What runs will take that begin at these stages, if each stage takes what it took once."""
    tails = [stages[stages.index(first) :] for first in firsts]
    return sum(overhead_s + sum(work_s.get(name, 0.0) for name in tail) for tail in tails)


def what(job: Job) -> str:
    """A job in words."""
    return "the full recipe" if job.name == FULL else f"without {job.name}"


def duration(seconds: float) -> str:
    """Minutes, or hours with one digit."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def stage_seconds(root: Path) -> dict[str, float]:
    """The stages' own work in a finished workspace, in the order of the chain."""
    return {
        name: float(read_json(root / "metrics" / f"{name}.runtime.json").get("work_s", 0.0))
        for name in dvc.stages(home.CHECKOUT)
    }


def dry(asked: Asked, recipe_run: Workspace) -> dict[str, Any]:
    """What would run, in order, and what is left out and why."""
    rows, left_out = [], dict[str, str]()
    for seed in seeds_of(asked, recipe_run):
        planned = plan(asked, recipe_run, seed)
        left_out |= planned.left_out
        rows += [
            {
                "technique": job.name,
                "seed": job.seed,
                "from": job.first,
                "workspace": job.workspace.name,
                "command": shlex.join(["stillroom", *job.command(asked.recipe)]),
            }
            for job in (planned.full, *planned.variants)
        ]
    return {"dry_run": True, "runs": rows, "left_out": left_out}
