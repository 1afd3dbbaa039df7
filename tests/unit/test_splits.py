"""Which files of a folder are which split, and shards of a hub data set."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tasks.errors import DataError
from tasks.fetching.splits import find_splits, join_shards


def put(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"text": texts, "label": "a"})
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)


def test_shards_become_one_file_of_all_rows(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"data/train-0000{number}-of-00003.parquet", f"text {number}")
    put(tmp_path / "data/test-00000-of-00001.parquet", "asked")
    join_shards(tmp_path)
    found = find_splits(tmp_path)
    assert set(found) == {"train", "test"}
    assert pd.read_parquet(found["train"])["text"].tolist() == ["text 0", "text 1", "text 2"]
    assert pd.read_parquet(found["test"])["text"].tolist() == ["asked"]


@pytest.mark.parametrize(
    "names",
    [("en/train-00000-of-00001.parquet", "fr/train-00000-of-00001.parquet"),
     ("train-00000-of-00002.csv", "train-00001-of-00002.csv"),
     ("train.parquet", "train-more.parquet")],
    ids=["two configurations", "another format", "no shards"],
)  # fmt: skip
def test_what_would_be_passed_over_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        put(tmp_path / name, name)
    with pytest.raises(DataError, match="found 2 files for train") as refused:
        join_shards(tmp_path)
    assert names[0] in str(refused.value)
