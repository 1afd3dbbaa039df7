"""What every knob of the pipeline means and what is allowed: the schema of ``params.yaml``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.schema_base import Count, Fraction, Section, SomeLayers, Training
from tasks.schema_serving import (
    Aware,
    Calibration,
    Evaluation,
    Exits,
    Gate,
    Promotion,
    Quantize,
    Release,
    StageDrop,
)
from tasks.schema_sources import Data, Foreign, Hub, Package
from tasks.schema_teaching import Augment, SecondTeacher, Teach, Writer

__all__ = [
    "Augment",
    "Aware",
    "Calibration",
    "Data",
    "Evaluation",
    "Exits",
    "Foreign",
    "Gate",
    "Hub",
    "Package",
    "Promotion",
    "Quantize",
    "Release",
    "SecondTeacher",
    "StageDrop",
    "Teach",
    "Training",
    "Writer",
]


class Hardware(Section):
    """The machine that the run is meant for. Nothing here is detected silently."""

    device: Literal["cpu", "cuda"]
    """Where training runs."""
    threads: Annotated[int, Field(ge=1, le=256)]
    """Threads that torch trains with."""
    profile: Literal["cpu-avx512-vnni", "cpu-avx2-vnni", "cpu-avx512", "cpu-avx2", "cpu-arm",
                     "gpu-sm80", "gpu-sm90", "gpu-sm100"]  # fmt: skip
    """What the bundle is built for: `tasks.hardware.PROFILES`."""


class Teacher(Section):
    """The model that is made small."""

    source: Literal["package", "path", "hub"]
    path: str
    """With `path`: a folder with config.json, model.safetensors and tokenizer.json."""
    package: Package
    hub: Hub
    training: Training


class Vocabulary(Section):
    """Which word pieces the student keeps. Single characters and specials always stay."""

    trim: bool
    min_count: Count
    """Keep a piece that occurs at least so often in the training texts."""


class Fresh(Section):
    """Sizes of a student with random weights, of the teacher's architecture."""

    layers: Count
    hidden: Count
    """Channels; a multiple of `heads`."""
    heads: Count
    ffn: Count


class Student(Section):
    """Where the student's weights come from."""

    source: Literal["teacher", "package", "path", "hub", "fresh", "run"]
    """`run`: the recovered model of an earlier run, as it was cut there."""
    path: str
    """With `path`: as `teacher.path`."""
    package: Package
    hub: Hub
    run: str
    """With `run`: the workspace of that run."""
    fresh: Fresh

    @property
    def pretrained(self) -> bool:
        """Whether it starts from a pretrained model of its own."""
        return self.source in ("package", "path", "hub")

    def same_model(self, teacher: Teacher) -> bool:
        """Whether this is the pretrained model of the teacher, as far as their sources tell."""
        if self.source != teacher.source:
            return False
        return {"package": self.package == teacher.package, "hub": self.hub == teacher.hub,
                "path": self.path == teacher.path}[self.source]  # fmt: skip


class Distillation(Section):
    """The objective towards the teacher; `distill` and `finetune` have each their own."""

    logits: Literal["kl", "mse"]
    """`kl`: of softened distributions; `mse`: of the logits as they are."""
    temperature: Annotated[float, Field(gt=0, le=100)]
    """Softens both distributions; the loss is scaled by its square."""
    temperature_end: Annotated[float, Field(gt=0, le=100)] | None
    """Where the temperature gets to by the last step, linearly; null keeps it."""
    alpha: Fraction
    """Weight of the hard labels; the teacher's soft labels get the rest."""
    alpha_end: Fraction | None
    """Where alpha gets to by the last step, linearly; null keeps it."""
    states: Annotated[float, Field(ge=0)]
    """Weight of the hidden states' distance; 0 leaves the teacher out of the step."""
    attention: Annotated[float, Field(ge=0)]
    """Weight of the attention's distance."""
    attention_form: Literal["maps", "relations"]
    """`maps`: attention probabilities; `relations`: query-query, key-key, value-value."""
    embeddings: Annotated[float, Field(ge=0)]
    """Weight of the distance of the embedding layer's output."""
    contrastive: Annotated[float, Field(ge=0)]
    """Weight of telling the teacher's vector of a text from those of the batch's other texts."""
    growth: Fraction
    """Share of the steps over which the matched layers grow from the first to all; 0: all."""


class Distill(Distillation):
    """Teacher → student."""

    enabled: bool
    student: Student
    layers: SomeLayers
    """Indices of the source's layers that the student starts with; `fresh` and `run` have their
    own."""
    vocabulary: Vocabulary
    assistants: tuple[SomeLayers, ...] = Field(strict=False)
    """Layers of models between teacher and student, each trained from the one before."""
    students: Annotated[int, Field(ge=1, le=20)]
    """Students of several seeds whose weights are averaged."""
    early: Fraction
    """Share of the steps after which a copy is kept that lottery tickets are rewound to."""
    training: Training


class Budget(Section):
    """What the pruned model may cost in int8, embeddings included; 0 asks for nothing.

    With a budget the planner chooses the shares per layer, `ffn_keep` and `heads_keep` are not
    read, and `hidden_keep` has to be 1.
    """

    bytes: Annotated[int, Field(ge=0)]
    """Of all servable files."""
    flops: Annotated[int, Field(ge=0)]
    """For a text of median length."""
    latency_ms: Annotated[float, Field(ge=0)]
    """p50 from text to label on this machine, one thread, batch 1."""


class Sparsity(Section):
    """Weights set to zero one by one; shapes stay."""

    method: Literal["none", "magnitude", "wanda", "sparsegpt", "lottery"]
    """`magnitude` is gradual, with training; `wanda` and `sparsegpt` are single shots;
    `lottery` rewinds to the copy that `distill.early` kept."""
    target: Annotated[float, Field(ge=0, lt=1)]
    """Share of the encoder's matrices that becomes zero; with `2of4` it is 0.5."""
    pattern: Literal["unstructured", "2of4"]
    scope: Literal["global", "layer"]
    """`layer` cuts every matrix alike; `global` lets them compete (magnitude and lottery)."""
    rounds: Count
    """Of `lottery`: train, cut, rewind. Each training is a whole `training` of its own."""


class Prune(Section):
    """Remove what contributes least: heads, neurons, channels, layers, single weights."""

    enabled: bool
    importance: Literal["activation", "magnitude", "taylor", "fisher", "random"]
    """What a unit is worth: see `tasks.pruning.importance`."""
    scope: Literal["global", "layer"]
    """`layer` cuts every layer alike; `global` lets layers compete."""
    ffn_keep: Annotated[float, Field(gt=0, le=1)]
    """Share of feed-forward neurons that stay."""
    heads_keep: Annotated[float, Field(gt=0, le=1)]
    """Share of attention heads that stay."""
    hidden_keep: Annotated[float, Field(gt=0, le=1)]
    """Share of embedding channels that stay, the same in all layers."""
    drop_layers: Annotated[int, Field(ge=0)]
    """Layers that go, those that change the hidden state least."""
    embedding_rank: Annotated[int, Field(ge=0)]
    """Rank that the word table is factorised to; 0 leaves it whole."""
    rounds: Annotated[int, Field(ge=1, le=50)]
    """Cuts; importance is estimated anew before each. 1 is a single shot."""
    budget: Budget
    sensitivity: bool
    """Measure what heads and neurons of each layer, whole layers and channels are worth; a budget
    does it, too."""
    sparsity: Sparsity
    calibration_samples: Annotated[int, Field(ge=1, le=100_000)]
    """Training texts that importance is estimated on; about 1024 suffice."""
    training: Training
    """Recovery after each round but the last and, with several rounds, after each layer that goes
    and after the word table; and of the sparse methods that train. 0.0x epochs are allowed. The
    objective is `finetune`'s."""


class Finetune(Distillation):
    """Recover the pruned model by distillation from the same teacher."""

    enabled: bool
    rewind: bool
    """Learning-rate rewinding: begin at the rate that `distill` had so many epochs before its
    end; `learning_rate` and `warmup` are not read."""
    training: Training


class Params(Section):
    """All of ``params.yaml``."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    student_seed: Annotated[int, Field(ge=0, lt=2**30)]
    """Added to `seed` wherever a student is trained: other students of the same teacher."""
    hardware: Hardware
    data: Data
    teacher: Teacher
    teach: Teach
    distill: Distill
    prune: Prune
    finetune: Finetune
    exits: Exits
    quantize: Quantize
    evaluation: Evaluation
    gate: Gate
    promotion: Promotion
    release: Release

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if len(set(self.distill.layers)) != len(self.distill.layers) or not self.distill.layers:
            raise ValueError("distill.layers: found repeats or nothing, expected distinct indices")
        sources = {
            "data": (self.data.source, self.data.hub),
            "teacher": (self.teacher.source, self.teacher.hub),
            "teach.writer": (self.teach.writer.source, self.teach.writer.hub),
            "distill.student": (self.distill.student.source, self.distill.student.hub),
        }
        if self.data.text_column == self.data.label_column:
            raise ValueError(f"data.label_column: found {self.data.label_column!r}, which is "
                             "data.text_column, expected another column")  # fmt: skip
        slices = self.evaluation.slices
        if len(set(slices)) != len(slices):
            raise ValueError(f"evaluation.slices: found {list(slices)}, expected each once")
        for name, (source, hub) in sources.items():
            if source == "hub" and not hub.id:
                raise ValueError(f"{name}.hub.id: found '', expected OWNER/NAME")
        if not self.teach.writer.enabled and self.teach.writer.source != "package":
            raise ValueError(f"teach.writer.enabled: found false with source "
                             f"{self.teach.writer.source}, expected true")  # fmt: skip
        if self.teach.second.enabled and not self.distill.student.pretrained:
            raise ValueError("teach.second.enabled: found true with distill.student.source "
                             f"{self.distill.student.source}, expected one of package, path, "
                             "hub: a pretrained model beside the teacher's")  # fmt: skip
        if self.teach.second.enabled and self.distill.student.same_model(self.teacher):
            raise ValueError("teach.second.enabled: found true with the teacher's own model in "
                             "distill.student, expected another model than the teacher's"
                             )  # fmt: skip
        if self.teach.second.enabled and not self.teach.second.training.epochs:
            raise ValueError("teach.second.training.epochs: found 0, expected that it is trained")
        if self.data.folds == 1 or self.data.fold >= max(self.data.folds, 1):
            raise ValueError(f"data.fold: found {self.data.fold} of {self.data.folds} folds, "
                             "expected 0 of none, or one of at least two")  # fmt: skip
        if self.distill.assistants and self.distill.student.source in ("fresh", "run"):
            raise ValueError(
                f"distill.assistants: found layers with distill.student.source "
                f"{self.distill.student.source}, expected none: its layers are not chosen"
            )
        asked = any(self.prune.budget.model_dump().values())
        if asked and self.prune.hidden_keep < 1:
            raise ValueError(
                f"prune.hidden_keep: found {self.prune.hidden_keep} with a prune.budget, "
                "expected 1.0: a budget plans heads and neurons alone"
            )
        if asked and self.prune.scope == "global":
            raise ValueError("prune.scope: found global with a prune.budget, expected layer: a "
                             "budget plans each layer")  # fmt: skip
        if self.distill.early and self.distill.training.patience:
            raise ValueError(
                f"distill.training.patience: found {self.distill.training.patience} with "
                "distill.early, expected 0: it may stop before the early copy"
            )
        if self.distill.early and not self.distill.training.epochs:
            raise ValueError(f"distill.early: found {self.distill.early} of 0 epochs, expected 0.0")
        sparsity = self.prune.sparsity
        if sparsity.method == "lottery":
            epochs = self.distill.training.epochs if self.distill.enabled else 0
            if not (epochs and self.distill.early):
                raise ValueError(
                    f"distill.early: found {self.distill.early} of {epochs:g} epochs of distill "
                    "with prune.sparsity.method lottery, expected a share of some such as 0.05"
                )
            if self.distill.students > 1:
                raise ValueError(
                    f"distill.students: found {self.distill.students} with prune.sparsity.method "
                    "lottery, expected 1: a mean of students has no early copy"
                )
        if sparsity.method in ("magnitude", "lottery") and not self.prune.training.epochs:
            raise ValueError(
                f"prune.training.epochs: found 0 with prune.sparsity.method {sparsity.method}, "
                "expected that it trains: weights go while it does"
            )
        if sparsity.method in ("wanda", "sparsegpt") and sparsity.scope == "global":
            raise ValueError(
                f"prune.sparsity.scope: found global with prune.sparsity.method {sparsity.method}, "
                "expected layer: its scores do not compare across matrices"
            )
        if sparsity.method != "none" and sparsity.pattern == "2of4" and sparsity.target != 0.5:
            raise ValueError(
                f"prune.sparsity.target: found {sparsity.target}, expected 0.5 with pattern 2of4"
            )
        if sparsity.method in ("magnitude", "lottery") and self.prune.training.patience:
            raise ValueError(
                f"prune.training.patience: found {self.prune.training.patience}, expected 0 with "
                "a sparsity that grows in training: the best epoch is a denser one"
            )
        if self.distill.student.fresh.hidden % self.distill.student.fresh.heads:
            raise ValueError(
                f"distill.student.fresh.heads: found {self.distill.student.fresh.heads}, "
                "expected that hidden is a multiple of heads"
            )
        if self.exits.layers and self.quantize.aware.mode == "always":
            raise ValueError(
                f"exits.layers: found {list(self.exits.layers)} with quantize.aware.mode always, "
                "expected none: training with simulated int8 changes the model under its heads"
            )
        scheme = self.quantize.scheme
        if self.quantize.aware.mode == "always" and scheme in ("weight_only", "half", "bf16"):
            raise ValueError(
                f"quantize.aware.mode: found always with quantize.scheme {scheme}, expected "
                "dynamic or static: nothing else has int8 products to train with"
            )
        if self.exits.layers and self.quantize.runtimes != ("onnxruntime",):
            raise ValueError(
                f"quantize.runtimes: found {list(self.quantize.runtimes)} with exits.layers, "
                "expected [onnxruntime]: no other engine runs a model in stages"
            )
        if self.evaluation.batches[:1] != (1,):
            raise ValueError(
                f"evaluation.batches: found {list(self.evaluation.batches)}, "
                "expected a list that starts with 1"
            )
        return self
