"""Sections of ``params.yaml`` about what the teacher is asked, and who is asked beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.schema_base import Fraction, Section, Training
from tasks.schema_sources import Hub, Package


class Augment(Section):
    """Altered copies of the training texts, made without a network, labelled by the teacher."""

    copies: Annotated[int, Field(ge=0, le=100)]
    """Of each training text; 0 makes none."""
    drop: Fraction
    """Probability that a word is left out."""
    swap: Fraction
    """Probability that a word changes places with the next one."""
    replace: Fraction
    """Probability that a word gives way to another word of the training texts."""
    splice: Fraction
    """Share of the copies whose end comes from another training text."""


class SecondTeacher(Section):
    """The student's own pretrained model, fine-tuned as the teacher was, to be asked with it.

    Another kind of model errs elsewhere, and this one is there anyway.
    """

    enabled: bool
    training: Training


class Writer(Section):
    """A pretrained decoder that is fine-tuned on the training texts and writes others like them."""

    enabled: bool
    texts: Annotated[int, Field(ge=1, le=100_000)]
    """Written of each class; what is twice there or a training text is left out."""
    top_p: Annotated[float, Field(gt=0, le=1)]
    """Pieces are drawn from the likeliest that have this probability together."""
    source: Literal["package", "path", "hub"]
    path: str
    """With `path`: a folder as `teacher.path`, or with one GGUF file."""
    package: Package
    """`member` is a folder as `teacher.path`, or a GGUF file."""
    hub: Hub
    training: Training


class Teach(Section):
    """What the teacher is asked, and who else is."""

    augment: Augment
    writer: Writer
    """What it writes is labelled by the teacher, as altered copies are."""
    teachers: str
    """A further fine-tuned checkpoint for the same labels, or a folder of several; their logits
    are averaged with the teacher's. The placeholder `data/own/teachers` means none."""
    second: SecondTeacher
    """One more teacher, of what the student is made of; its logits count as much as any other's."""
