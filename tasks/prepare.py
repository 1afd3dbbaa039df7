"""Turn raw files into three clean splits, and refuse what cannot be trained on.

    python -m tasks.prepare
    dvc repro prepare

A text that also stands in test is dropped from train and validation: test stays as its
authors made it. Unlabelled texts, where there are any, lose what stands in any split.
"""

from __future__ import annotations

import codecs
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import schema
from tasks.errors import DataError
from tasks.files import write_json
from tasks.paths import (
    ELSEWHERE,
    LABELS,
    LONG_TEXTS,
    PREPARED,
    RAW,
    TEST,
    TRAIN,
    UNLABELLED,
    VALIDATION,
)
from tasks.problems.splits import fold, fold_of, split_off
from tasks.schema import Params
from tasks.stage import Metrics, run, say


def main(params: Params) -> Metrics:
    data = params.data
    raw = {path.stem: path for path in sorted(RAW.iterdir(), key=lambda path: path.stem)}
    foreign = {
        name: read_foreign(raw.pop(name, None), name, config, data.text_column)
        for name, config in (("elsewhere", data.elsewhere), ("long_texts", data.long_texts))
    }
    unlabelled = {stem: raw.pop(stem) for stem in list(raw) if stem.startswith("unlabelled")}
    splits = {
        split: read_table(
            path, f"data.{split}", data.text_column, data.label_column,
            further=params.evaluation.slices if split == "test" else (),
        )
        for split, path in raw.items()
    }  # fmt: skip
    if "validation" not in splits:
        splits["train"], splits["validation"] = split_off(
            splits["train"], splits["test"], data.validation_fraction, params.seed
        )
    if data.folds:
        whole = pd.concat([splits["train"], splits["validation"]], ignore_index=True)
        splits["train"], splits["validation"] = fold_of(
            whole, splits["test"], data.folds, data.fold, params.seed
        )
    labels = check_labels(splits)
    if 0 < data.max_rows < len(labels):
        raise DataError(
            f"data.max_rows: found {data.max_rows}, expected 0 or at least {len(labels)}, "
            "a row of each class",
            next_command=f"stillroom compress --set data.max_rows={8 * len(labels)}",
        )
    tables = [
        read_table(
            path, "data.unlabelled" if stem == "unlabelled" else "data.package.unlabelled",
            data.text_column,
        )
        for stem, path in unlabelled.items()
    ]  # fmt: skip
    further, further_counts = unseen(pd.concat([NO_TEXTS, *tables], ignore_index=True), splits)
    splits, leaks = drop_leaks(splits)
    splits = {s: sample(frame, data.max_rows, params.seed) for s, frame in splits.items()}
    check_labels(splits)

    PREPARED.mkdir(parents=True, exist_ok=True)
    for split, path in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        frame = splits[split].assign(label=splits[split]["label"].map(labels.index))
        frame.reset_index(drop=True).to_parquet(path, index=False)
        say(f"prepare: {split}: {len(frame)} rows")
    texts = ((further, UNLABELLED), (foreign["elsewhere"], ELSEWHERE),
             (foreign["long_texts"], LONG_TEXTS))  # fmt: skip
    for frame, path in texts:
        pq.write_table(pa.table({"text": pa.array(frame["text"], pa.string())}), path)
    say(f"prepare: unlabelled: {len(further)} rows")
    write_json(LABELS, labels)
    return {
        "classes": len(labels),
        "rows": {split: len(frame) for split, frame in splits.items()},
        "dropped_leaks": leaks,
        "unlabelled": further_counts,
        **{name: len(frame) for name, frame in foreign.items()},
        "smallest_class": int(splits["train"]["label"].value_counts().min()),
        "words_p50": float(splits["train"]["text"].str.split().str.len().median()),
        "words_max": int(splits["train"]["text"].str.split().str.len().max()),
    }


NO_TEXTS = pd.DataFrame({"text": pd.Series(dtype=str)})


def read_foreign(
    path: Path | None, name: str, config: schema.Foreign, text_column: str
) -> pd.DataFrame:
    """Texts that belong to no class, each once; none where there is no file.

    Args:
        name: of the section in ``data``.
        text_column: of a user's own file.

    Raises:
        DataError: as `read_table`.
    """
    if path is None:
        return NO_TEXTS
    if config.source == "package":
        frame = read_table(path, f"data.{name}.package.member", config.column,
                           text_key=f"data.{name}.column")  # fmt: skip
    else:
        frame = read_table(path, f"data.{name}.path", text_column, text_key=f"data.{name}.path")
    return frame.drop_duplicates()


def read_table(
    path: Path,
    key: str,
    text_column: str,
    label_column: str | None = None,
    *,
    further: Sequence[str] = (),
    text_key: str = "data.text_column",
) -> pd.DataFrame:
    """Read CSV, TSV, JSONL or Parquet into string columns ``text`` and, if one is named, ``label``.

    Args:
        further: columns that are kept under their own names: `evaluation.slices`.
        text_key: of params, which names `text_column`.

    Raises:
        DataError: unreadable, no UTF-8, empty, or a column is missing or holds gaps.
    """
    try:
        frame = _read(path)
        if path.suffix in (".csv", ".tsv"):
            check_fields(frame, path.suffix)
    except UnicodeDecodeError as error:
        found, remedy = kind_of(path)
        raise DataError(
            f"{key}: found {found} (no UTF-8 at offset {error.start}), expected text in UTF-8",
            next_command=remedy,
        ) from None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{key}: cannot be read as {path.suffix} ({reason})",
            next_command=f"stillroom compress --set {key}=FILE",
        ) from None
    columns, keys = {"text": text_column}, {"text": text_key, "label": "data.label_column"}
    if label_column is not None:
        columns["label"] = label_column
    if clash := {"text", "label"} & set(further):
        raise DataError(
            f"evaluation.slices: found {sorted(clash)[0]!r}, expected columns of other names",
            next_command="stillroom compress --set evaluation.slices=[]",
        )
    for column in further:
        if column not in frame.columns:
            raise DataError(
                f"evaluation.slices: {key} has columns {', '.join(map(str, frame.columns))}; "
                f"expected {column!r}",
                next_command="stillroom compress --set evaluation.slices=[NAME]",
            )
    for name, column in columns.items():
        if column not in frame.columns:
            raise DataError(
                f"{key}: found columns {', '.join(map(str, frame.columns[:20]))}; "
                f"expected {column!r}",
                next_command=f"stillroom compress --set {keys[name]}=NAME",
            )
    frame = frame[[*columns.values(), *further]].set_axis([*columns, *further], axis=1)
    check_rows(frame, key)
    return frame.astype(str).reset_index(drop=True)  # Parquet keeps one, perhaps with repeats


def check_rows(frame: pd.DataFrame, key: str) -> None:
    """Refuse a table without rows, or with a gap in one.

    Raises:
        DataError: names the first such row.
    """
    if frame.empty:
        raise DataError(
            f"{key}: found a header and no rows, expected {' and '.join(frame.columns)} in each",
            next_command=f"stillroom compress --set {key}=FILE",
        )
    gaps = frame.isna() | (frame.astype(str).apply(lambda c: c.str.strip()) == "")
    if gaps.to_numpy().any():
        row = int(gaps.any(axis=1).to_numpy().argmax())
        column = str(gaps.columns[gaps.iloc[row].to_numpy().argmax()])
        raise DataError(
            f"{key}: row {row + 1} has no {column}, expected one in every row",
            next_command=f"stillroom compress --set {key}=FILE",
        )


def check_fields(frame: pd.DataFrame, suffix: str) -> None:
    """Raise ValueError where quoting has gone wrong and pandas made the best of it."""
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError("rows have more fields than the header; quote texts with separators")
    if frame.empty:
        return
    lines = frame.apply(lambda c: c.str.contains("\n", regex=False))
    odd = frame.apply(lambda c: c.str.contains("\t", regex=False)) if suffix == ".tsv" else (
        frame.apply(lambda c: c.str.count('"') % 2 == 1)
    )  # fmt: skip
    if (lines & odd).any(axis=None):
        raise ValueError("a quote is never closed; double the quotes inside texts")


def kind_of(path: Path) -> tuple[str, str]:
    """What a file that is no UTF-8 seems to be, and the command that helps."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"\x1f\x8b"):
        return "a file that gzip has packed", "gunzip FILE.gz"
    if start.startswith(b"PK"):
        return "a zip archive or a spreadsheet", "save it as CSV in UTF-8"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16", "iconv -f utf-16 -t utf-8 FILE > FILE.utf8"
    return "another encoding", "iconv -f latin1 -t utf-8 FILE > FILE.utf8"


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            if file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
                raise ValueError("one array, expected one object a line")
        return pd.read_json(path, lines=True, dtype=False, encoding="utf-8-sig")
    separator = "," if path.suffix == ".csv" else "\t"
    orange = [1, 2] if path.suffix == ".tab" else None  # kind and role of each column
    return pd.read_csv(path, sep=separator, skiprows=orange, dtype=str, keep_default_na=False,
                       encoding="utf-8")  # fmt: skip


def check_labels(splits: dict[str, pd.DataFrame]) -> list[str]:
    """The sorted class names.

    Raises:
        DataError: fewer than two classes, two that nobody can tell apart, or a split has a class
            that train has not.
    """
    labels = sorted(splits["train"]["label"].unique())
    spelt: dict[str, str] = {}
    for label in labels:
        other = spelt.setdefault(" ".join(label.split()), label)
        if other != label:
            raise DataError(
                f"data.train: found labels {other!r} and {label!r}, which differ in spaces alone, "
                "expected one spelling of each",
                next_command="stillroom compress --set data.train=FILE",
            )
    if len(labels) < 2:
        raise DataError(
            f"data.train: found the single label {labels[0]!r}, expected at least two",
            next_command="stillroom compress --set data.train=FILE",
        )
    for split in ("validation", "test"):
        unseen = sorted(set(splits[split]["label"]) - set(labels))
        if unseen:
            raise DataError(
                f"data.{split}: found label {unseen[0]!r} that train has not "
                f"({len(unseen)} such), expected only labels of train",
                next_command=f"stillroom compress --set data.{split}=FILE",
            )
    return labels


def drop_leaks(splits: dict[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Drop from train and validation what also stands in a later split; count it.

    Raises:
        DataError: nothing is left of a split, or no row of a class in train.
    """
    folded = {s: fold(f["text"]) for s, f in splits.items()}
    held_out = set(folded["test"])
    clean = {"test": splits["test"]}
    for split, later in (("validation", "test"), ("train", "validation or test")):
        clean[split] = splits[split][~folded[split].isin(held_out)]
        held_out |= set(folded[split])
        if clean[split].empty:
            raise DataError(
                f"data.{split}: found only texts that also stand in {later}, expected others",
                next_command=f"stillroom compress --set data.{split}=FILE",
            )
    if lost := sorted(set(splits["train"]["label"]) - set(clean["train"]["label"])):
        raise DataError(
            f"data.train: found no text with label {lost[0]!r} that does not also stand in "
            f"validation or test ({len(lost)} such labels), expected one of each",
            next_command="stillroom compress --set data.train=FILE",
        )
    return clean, {s: len(splits[s]) - len(clean[s]) for s in ("train", "validation")}


def unseen(
    unlabelled: pd.DataFrame, splits: dict[str, pd.DataFrame]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Unlabelled texts that stand in no split, each once; and how many stayed and went.

    All of them are kept: ``data.max_rows`` is about the labelled splits.

    Args:
        splits: before anything was dropped from them or sampled.
    """
    known = {text for frame in splits.values() for text in fold(frame["text"])}
    folded = fold(unlabelled["text"])
    leaks = folded.isin(known)
    repeats = folded.duplicated() & ~leaks
    kept = unlabelled[~leaks & ~repeats]
    return kept, {
        "rows": len(kept),
        "dropped_leaks": int(leaks.sum()),
        "dropped_repeats": int(repeats.sum()),
    }


def sample(frame: pd.DataFrame, rows: int, seed: int) -> pd.DataFrame:
    """At most `rows` rows, classes as even as they can be and none lost."""
    if not rows or len(frame) <= rows:
        return frame
    shuffled = frame.sample(frac=1.0, random_state=seed)
    rank = shuffled.groupby("label").cumcount()
    return shuffled.loc[rank.sort_values(kind="stable").index].head(rows).sort_index()


if __name__ == "__main__":
    run("prepare", main)
