"""What all sections of ``params.yaml`` have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Layers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
SomeLayers = Annotated[Layers, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Section(BaseModel):
    """A section of ``params.yaml``: no unknown key, no silent conversion, no change later."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class Training(Section):
    """How one training stage runs; the same knobs in every stage that trains."""

    epochs: Annotated[float, Field(ge=0, le=1000)]
    """0 leaves the model as it is."""
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
    """`bf16` is autocast where the processor has such products, else fp32: emulated they are a
    hundred times slower. Master weights stay fp32."""
    patience: Annotated[int, Field(ge=0)]
    """Stop after so many epochs without a better validation accuracy (loss, where texts are
    learned to be written), and keep the best epoch's weights; 0 trains to the end and keeps the
    last."""
