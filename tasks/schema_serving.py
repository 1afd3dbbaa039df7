"""Sections of ``params.yaml`` about what is served: its form, how it is judged, where it goes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tasks.schema_base import Count, Fraction, Section, Training


def _known_country(code: str) -> str:
    """CodeCarbon counts with the world's mean for a code that it does not know."""
    import pycountry  # not with the module: a tenth of a second of every command

    if pycountry.countries.get(alpha_3=code) is None:
        raise ValueError(f"evaluation.country: found {code!r}, "
                         "expected the three letters of a country in ISO 3166")  # fmt: skip
    return code


class Exits(Section):
    """Depth that follows the input: heads before the last layer, and when one is sure enough."""

    layers: tuple[Count, ...] = Field(strict=False)
    """How many of the pruned model's layers have run at each exit; none switches it off."""
    confidence: Literal["auto"] | Annotated[float, Field(gt=0, le=1)]
    """Softmax probability from which on serving stops; 1 never stops early. `auto`: the least
    that costs at most `quantize.max_loss` points against full depth on validation."""

    @model_validator(mode="after")
    def _ascending(self) -> Exits:
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(
                f"exits.layers: found {list(self.layers)}, expected distinct numbers, ascending"
            )
        return self


class Calibration(Section):
    """Where the ranges of activations come from; read by `static` alone."""

    method: Literal["minmax", "entropy", "percentile"]
    samples: Annotated[int, Field(ge=1, le=10_000)]
    """Training texts; 100 to 500 suffice."""
    percentile: Annotated[float, Field(gt=50, le=100)]
    """Of absolute values, with `percentile`: what lies beyond is clipped."""


class Aware(Section):
    """Training with simulated int8; the objective is `finetune`'s."""

    mode: Literal["auto", "never", "always"]
    """`auto`: where the budget is not kept with every layer in int8; the better of the two is
    served. Never with `exits.layers`: it changes the model under its heads."""
    training: Training


class Quantize(Section):
    """The servable form."""

    scheme: Literal["dynamic", "static", "weight_only", "half", "bf16", "none"]
    """`dynamic`: int8 weights, activations quantised on the fly; `static`: explicit Q/DQ pairs
    with ranges from calibration; `weight_only`: weights in `bits`, products in fp32; `half`:
    fp16; `bf16`: weights in bfloat16, products in fp32; `none`: fp32."""
    bits: Literal[8, 4]
    """Of a weight, with `weight_only`."""
    per_channel: bool
    """A scale for each output channel of a matrix instead of one for all; of `dynamic`, `static`
    and what `aware` trains."""
    embeddings: bool
    """Store the embedding tables as int8, too."""
    calibration: Calibration
    max_loss: Annotated[float, Field(ge=0, le=100)]
    """Points of accuracy that quantisation may cost on validation; beyond it, the layers that
    cost most stay fp32."""
    max_flips: Annotated[float, Field(ge=0, le=100)]
    """Per cent of validation texts that may get another label by it."""
    aware: Aware
    sensitivity: bool
    """Measure what each layer costs alone; a budget that is not kept does it, too."""
    runtimes: Annotated[
        tuple[Literal["onnxruntime", "openvino", "tensorrt"], ...],
        Field(strict=False, min_length=1),
    ]
    """Engines to build for; of several, the fastest on validation that keeps the budget serves."""
    calibrate_confidence: bool
    """Fold a temperature into the logits, fitted on validation; no answer changes."""


class Evaluation(Section):
    """How the report is measured."""

    latency_texts: Annotated[int, Field(ge=8)]
    """Texts in the latency loop, drawn from the test split."""
    latency_rounds: Annotated[int, Field(ge=1)]
    """Times that every model walks through them, interleaved."""
    batches: tuple[Count, ...] = Field(strict=False)
    """Batch sizes; 1 is always the one that ratios are made of."""
    energy_seconds: Annotated[float, Field(ge=0)]
    """Loop length per model; under 30 s the figure is left out."""
    country: Annotated[str, Field(pattern="^[A-Z]{3}$"), AfterValidator(_known_country)]
    """ISO 3166 alpha-3: carbon intensity of the grid."""
    bootstrap: Annotated[int, Field(ge=100)]
    """Resamples for confidence intervals."""
    evidence_texts: Annotated[int, Field(ge=32)]
    """Texts at most for robustness, counterfactuals, memorisation and texts from elsewhere."""
    lengths: tuple[Annotated[int, Field(ge=4, le=512)], ...] = Field(strict=False)
    """Word pieces of the texts in the latency grid; none leaves the grid out."""
    slices: tuple[str, ...] = Field(strict=False)
    """Columns of test whose values are reported one by one: source, language, a group."""
    counterfactual: str
    """File with words and prefixes that ought not to change an answer."""


class StageDrop(Section):
    """Largest loss of the primary metric against the teacher on validation, in points of 100."""

    distill: Annotated[float, Field(ge=0, le=100)]
    prune: Annotated[float, Field(ge=0, le=100)]
    finetune: Annotated[float, Field(ge=0, le=100)]


class Gate(Section):
    """What a candidate must meet on test. Drops are in points of 100 against the teacher."""

    baseline_floor: Fraction
    """Accuracy on validation under which a teacher is not worth copying."""
    stage_drop: StageDrop
    max_drop: Annotated[float, Field(ge=0, le=100)]
    max_drop_upper95: Annotated[float, Field(ge=0, le=100)]
    """Upper end of the paired-bootstrap interval of the drop."""
    max_macro_f1_drop: Annotated[float, Field(ge=0, le=100)]
    max_class_drop: Annotated[float, Field(ge=0, le=100)]
    """Of recall, in any class, after shrinkage and correction for the number of classes."""
    class_min_rows: Count
    """Classes with fewer test rows are not judged one by one."""
    class_prior_rows: Annotated[float, Field(ge=0)]
    """Strength of the shrinkage towards the overall drop, in rows."""
    max_ece: Fraction
    max_bytes: Count
    """Of all servable files."""
    min_parity: Fraction
    """Share of test texts that the servable files answer as the PyTorch model behind them."""


class Promotion(Section):
    """What a version must meet on the host that promotes it; kept with the version.

    No stage reads it, so that a change runs none again.
    """

    max_slowdown: Annotated[float, Field(ge=0, le=1000)]
    """Times the champion's time from text to label, p50 over paired blocks; 0: no limit."""


class Licences(Section):
    """What the model card says of licences; empty: as far as the source tells."""

    data: str
    """Of the texts with labels."""
    unlabelled: str
    """Of those without."""
    teacher: str
    """Of its pretrained weights."""
    student: str
    """Of its pretrained weights, where it has some of its own."""
    writer: str
    """Of its pretrained weights."""


class Release(Section):
    """Where a passing bundle goes, and what is said of it there."""

    name: str
    """Registered model; empty: follows the data."""
    licences: Licences
