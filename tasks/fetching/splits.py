"""Which files of a folder are train, validation and test."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SPLIT_NAMES = {"train": "train", "dev": "validation", "val": "validation", "valid": "validation",
               "validation": "validation", "test": "test", "unlabelled": "unlabelled",
               "unlabeled": "unlabelled", "unsupervised": "unlabelled"}  # fmt: skip


def find_splits(folder: Path) -> dict[str, str]:
    """Files of a folder whose stem names a split (``dev`` is validation)."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        split = SPLIT_NAMES.get(path.stem.split("-")[0])
        if split is not None and path.suffix in SUFFIXES:
            found.setdefault(split, str(path))
    return found


def join_shards(folder: Path) -> None:
    """One file of each split that a hub data set is cut into: ``train-00000-of-00003.parquet``.

    Raises:
        DataError: a split stands in several folders, or is cut in another format.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES]
    shards: dict[str, list[Path]] = {}
    for path in files:
        if split := SPLIT_NAMES.get(path.stem.split("-")[0]):
            shards.setdefault(split, []).append(path)
    for split, paths in shards.items():
        if len(paths) == 1:
            continue
        cut = all(re.search(r"-\d+-of-\d+\.parquet$", path.name) for path in paths)
        if not cut or len({path.parent for path in paths}) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in paths[:3])
            raise DataError(
                f"data.hub: found {len(paths)} files for {split} ({names}), expected one, or "
                "shards in Parquet in one folder",
                next_command=f"stillroom compress --set data.source=files --set data.{split}=FILE",
            )
        whole = pa.concat_tables([pq.read_table(path) for path in paths])
        for path in paths:
            path.unlink()
        pq.write_table(whole, paths[0].with_name(f"{split}.parquet"))
