"""Reading, checking, splitting: what the user's data may look like and what not."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import DataError, UsageError
from tasks.params import overlay, parse, read_yaml
from tasks.prepare import (
    check_labels,
    drop_leaks,
    main,
    read_foreign,
    read_table,
    sample,
    unseen,
)
from tasks.problems.splits import fold_of, split_off
from tasks.schema import Params

ROOT = Path(__file__).resolve().parents[2]
FRAME = pd.DataFrame({"text": ["one, two", 'a "quoted"\nline', "ünï", "x"], "label": list("abab")})


NONE = pd.DataFrame({"text": pd.Series(dtype=str), "label": pd.Series(dtype=str)})


def frame(*pairs: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["text", "label"])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_four_formats_read_alike(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train{suffix}"
    source = FRAME.rename(columns={"text": "Body", "label": "Class"}).assign(more=1)
    if suffix == ".parquet":
        source.to_parquet(path)
    elif suffix == ".jsonl":
        source.to_json(path, orient="records", lines=True)
    else:
        source.to_csv(path, sep="\t" if suffix == ".tsv" else ",", index=False)
    pd.testing.assert_frame_equal(read_table(path, "data.train", "Body", "Class"), FRAME)


def test_two_more_lines_below_the_header_of_oranges_tables(tmp_path: Path) -> None:
    path = tmp_path / "posts.tab"
    path.write_text("Category\tText\nd\tstring\nclass\t\n\na\thello there\nb\tNA\n")
    config = settled().data.long_texts
    found = read_foreign(path, "long_texts", config, "text")
    assert found["text"].tolist() == ["hello there", "NA"]
    with pytest.raises(DataError, match=r"expected 'text'") as caught:
        read_foreign(path, "long_texts", config.model_copy(update={"column": "text"}), "text")
    assert caught.value.next_command == "stillroom compress --set data.long_texts.column=NAME"
    assert read_foreign(None, "long_texts", config, "text").empty


def test_an_index_with_repeats_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    whole = pd.concat([frame(("a", "x"), ("b", "y")), frame(("c", "x"), ("d", "y"))])
    whole.to_parquet(path)
    read = read_table(path, "data.train", "text", "label")
    train, validation = split_off(read, NONE, 0.25, 0)
    assert sorted([*train["text"], *validation["text"]]) == ["a", "b", "c", "d"]
    assert len(validation) == 1


def test_many_small_classes_give_their_share_of_validation() -> None:
    whole = frame(*((f"{label} {i}", f"{label:03}") for label in range(60) for i in range(5)))
    train, validation = split_off(whole, NONE, 0.1, 3)
    assert len(validation) == 30
    assert validation["label"].is_unique
    assert len(train) == 270
    other = split_off(whole, NONE, 0.1, 4)[1]
    assert set(other["label"]) != set(validation["label"]), "by lot"


def test_a_tab_inside_quotes_is_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    whole = frame(("one\ttwo", "a"), ("three\nfour", "b"))
    whole.to_csv(path, sep="\t", index=False)
    pd.testing.assert_frame_equal(read_table(path, "data.train", "text", "label"), whole)


@pytest.mark.parametrize(
    ("name", "content", "said", "remedy"),
    [
        ("t.csv", gzip.compress(b"text,label\na,b\n", mtime=0), "gzip has packed", "gunzip"),
        ("t.csv", "text,label\na,b\n".encode("utf-16"), "UTF-16", "iconv -f utf-16"),
        ("t.csv", "text,label\ncaf\xe9,b\n".encode("latin1"), "another enc", "iconv -f latin1"),
        ("t.jsonl", b'[{"text": "a", "label": "b"}]', "one object a line", "data.train=FILE"),
    ],
    ids=["gzip", "UTF-16", "latin-1", "one array"],
)
def test_what_a_file_seems_to_be_is_told_with_what_helps(
    tmp_path: Path, name: str, content: bytes, said: str, remedy: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_table(tmp_path / name, "data.train", "text", "label")
    assert remedy in str(caught.value.next_command)


def test_which_split_has_nothing_of_its_own_is_told() -> None:
    whole, other = frame(("a", "x"), ("b", "y")), frame(("c", "x"), ("d", "y"))
    for split, said in (("validation", "stand in test"), ("train", "in validation or test")):
        splits = {"train": whole, "validation": other, "test": frame(("e", "x"))}
        splits["test"] = splits[split] if split == "validation" else splits["test"]
        if split == "train":
            splits["validation"] = whole
        with pytest.raises(DataError, match=rf"data\.{split}: found only texts .*{said}"):
            drop_leaks(splits)
    splits = {"train": frame(("a", "x"), ("b", "y"), ("c", "z")), "validation": other,
              "test": frame(("b", "x"))}  # fmt: skip
    with pytest.raises(DataError, match=r"no text with label 'y'.*\(2 such"):
        drop_leaks(splits)


def test_declared_slices_stay_beside_text_and_label(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    FRAME.assign(source=list("wwvv"), other="x").to_csv(path, index=False)
    found = read_table(path, "data.test", "text", "label", further=("source",))
    assert list(found.columns) == ["text", "label", "source"]
    assert found["source"].tolist() == list("wwvv")
    with pytest.raises(DataError, match=r"evaluation\.slices: data\.test has columns .*'sauce'"):
        read_table(path, "data.test", "text", "label", further=("sauce",))
    with pytest.raises(DataError, match=r"evaluation\.slices: found 'label'"):
        read_table(path, "data.test", "text", "label", further=("label",))


def test_words_that_pandas_takes_for_gaps_are_words(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nNA,null\nnone,NaN\n")
    read = read_table(tmp_path / "train.csv", "data.train", "text", "label")
    assert read.to_numpy().tolist() == [["NA", "null"], ["none", "NaN"]]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"text,label\n", "no rows"),
        ("t.csv", b"body,label\na,b\n", "found columns body, label; expected 'text'"),
        ("t.csv", b"text,label\na,\n", "row 1 has no label"),
        ("t.csv", b"text,label\nok,x\n  ,b\n", "row 2 has no text"),
        ("t.csv", "text,label\ncafé,b\n".encode("latin1"), "no UTF-8"),
        ("t.jsonl", b'{"text": "a", "label"\n', "cannot be read as .jsonl"),
        ("t.csv", b"text,label\nhello, world,greet\n", "more fields than the header"),
        (
            "t.tsv",
            b'text\tlabel\n"hi there\tgreet\nok\tpart\n"bye\tpart\n',
            "quote is never closed",
        ),
        ("t.tsv", b'text\tlabel\n"Hello\ta\nyo" said\tb\n', "quote is never closed"),
        ("t.csv", b'text,label\n"unclosed,a\n"yo",b\n', "quote is never closed"),
        ("t.parquet", b"no parquet", "cannot be read as .parquet"),
    ],
)
def test_unusable_files_are_told(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_table(tmp_path / name, "data.train", "text", "label")
    assert "data.train" in str(caught.value)


def test_json_lines_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a", "label": 1}\n')
    read = read_table(tmp_path / "t.jsonl", "data.train", "text", "label")
    assert read.to_numpy().tolist() == [["a", "1"]]


def test_one_row_of_each_class_cannot_be_split() -> None:
    with pytest.raises(DataError, match="one text of each class"):
        split_off(frame(("a", "x"), ("b", "y")), NONE, 0.1, 0)


def test_a_text_goes_to_validation_with_all_its_copies() -> None:
    common = [(f"Common {i}", "ab"[i % 2]) for i in range(30) for _ in range(20)]
    rare = [(f"rare {i}", "ab"[i % 2]) for i in range(300)]
    bye = [("bye", "leave"), ("Bye ", "leave"), ("BYE", "leave")]
    torn = [("both", "a"), ("both", "b")]
    whole, test = frame(*common, *rare, *bye, *torn), frame(("common 0", "a"))
    for train, validation in (split_off(whole, test, 0.1, 0), fold_of(whole[:900], test, 5, 2, 0)):
        clean, dropped = drop_leaks({"train": train, "validation": validation, "test": test})
        assert dropped == {"train": 20, "validation": 0}, "what stands in test, and no other"
        assert 20 < clean["validation"]["text"].nunique() < 80
        assert not {"both", "bye"} & set(validation["text"].str.casefold())
    with pytest.raises(DataError, match=r"data\.folds: found 5, and class 'leave' has 1 texts"):
        fold_of(whole, test, 5, 0, 0)


def test_labels_must_be_two_and_known_to_train() -> None:
    good = frame(("a", "x"), ("b", "y"))
    assert check_labels({"train": good, "validation": good, "test": good}) == ["x", "y"]
    with pytest.raises(DataError, match="single label 'x'"):
        check_labels({"train": good[:1], "validation": good[:1], "test": good[:1]})
    with pytest.raises(DataError, match=r"data\.test: found label 'z'"):
        check_labels({"train": good, "validation": good, "test": frame(("c", "z"))})
    with pytest.raises(DataError, match="found labels ' y' and 'y', which differ in spaces alone"):
        check_labels({"train": pd.concat([good, frame(("c", " y"))])})


def test_a_text_of_test_leaves_train_and_test_stays() -> None:
    splits = {
        "train": frame(("Where is  my card", "x"), ("b", "y"), ("v", "y"), ("z", "x")),
        "validation": frame(("v", "y"), ("w", "x")),
        "test": frame(("where is my CARD", "x")),
    }
    clean, dropped = drop_leaks(splits)
    assert clean["train"]["text"].tolist() == ["b", "z"]
    assert clean["validation"]["text"].tolist() == ["v", "w"]
    assert len(clean["test"]) == 1
    assert dropped == {"train": 2, "validation": 0}


ROWS = st.lists(st.sampled_from("abc"), min_size=6, max_size=60).filter(lambda r: len(set(r)) > 1)


@settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(ROWS, st.floats(0.05, 0.45), st.integers(0, 5))
def test_split_off_parts_train_in_two(labels: list[str], fraction: float, seed: int) -> None:
    whole = frame(*((f"t{i}", label) for i, label in enumerate(labels)))
    train, validation = split_off(whole, NONE, fraction, seed)
    assert sorted([*train["text"], *validation["text"]]) == sorted(whole["text"])
    assert len(validation)
    assert set(train["label"]) == set(whole["label"])


@given(ROWS, st.integers(3, 20))
def test_a_sample_loses_no_class(labels: list[str], rows: int) -> None:
    whole = frame(*((f"t{i}", label) for i, label in enumerate(labels)))
    few = sample(whole, rows, seed=0)
    assert len(few) == min(rows, len(whole))
    assert set(few["label"]) == set(labels)
    assert set(few["text"]) <= set(whole["text"])


def test_unlabelled_texts_need_only_a_text_column(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("id,text\n1,one\n2,NA\n")
    read = read_table(tmp_path / "u.csv", "data.unlabelled", "text")
    assert read.columns.tolist() == ["text"]
    assert read["text"].tolist() == ["one", "NA"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text\n", "no rows, expected text in each"),
        ("body\na\n", "found columns body; expected 'text'"),
        ("id,text\n1,a\n2, \n", "row 2 has no text"),
    ],
)
def test_unusable_unlabelled_files_are_told(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "u.csv").write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        read_table(tmp_path / "u.csv", "data.unlabelled", "text")
    assert "data.unlabelled" in str(caught.value)


def test_unlabelled_texts_of_a_split_go_and_repeats_too() -> None:
    splits = {
        "train": frame(("In train", "x")),
        "validation": frame(("in validation", "x")),
        "test": frame(("in test", "x")),
    }
    texts = ["new", "in  TRAIN", "In Validation", "in test", "NEW ", "newer", "in test"]
    kept, counts = unseen(pd.DataFrame({"text": texts}), splits)
    assert kept["text"].tolist() == ["new", "newer"]
    assert counts == {"rows": 2, "dropped_leaks": 4, "dropped_repeats": 1}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Raw files of forty labelled rows, as fetch leaves them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/raw").mkdir(parents=True)
    for split, rows in (("train", 40), ("test", 10)):
        whole = frame(*((f"{split} text {i}", "ab"[i % 2]) for i in range(rows)))
        whole.to_csv(tmp_path / f"data/raw/{split}.csv", index=False)
    return tmp_path


def settled(**data: object) -> Params:
    """The checkout's params with other keys in section data."""
    return parse(overlay(read_yaml(ROOT / "params.yaml"), {"data": data}))


def test_without_an_unlabelled_file_there_is_an_empty_table(workspace: Path) -> None:
    metrics = main(settled())
    table = pq.read_table(workspace / "data/prepared/unlabelled.parquet")
    assert table.column_names == ["text"]
    assert table.num_rows == 0
    assert str(table.schema.field("text").type) == "string"
    assert metrics["unlabelled"] == {"rows": 0, "dropped_leaks": 0, "dropped_repeats": 0}


def test_unlabelled_texts_are_prepared_beside_the_splits(workspace: Path) -> None:
    lines = ["test text 3", "TRAIN text 39", *(f"extra {i}" for i in range(30)), "extra 7"]
    pd.DataFrame({"text": lines}).to_json(
        workspace / "data/raw/unlabelled.jsonl", orient="records", lines=True
    )
    metrics = main(settled(max_rows=6))
    assert metrics["rows"] == {"train": 6, "validation": 4, "test": 6}
    # all that is in no split, also in what max_rows has left out of one
    table = pq.read_table(workspace / "data/prepared/unlabelled.parquet")
    assert table["text"].to_pylist() == [f"extra {i}" for i in range(30)]
    assert metrics["unlabelled"] == {"rows": 30, "dropped_leaks": 2, "dropped_repeats": 1}


def test_unlabelled_texts_of_several_files_are_one_table(workspace: Path) -> None:
    for name, lines in (("unlabelled", ["mine"]), ("unlabelled-1", ["one", "Mine"]),
                        ("unlabelled-2", ["two", "test text 3"])):  # fmt: skip
        pd.DataFrame({"text": lines}).to_csv(workspace / f"data/raw/{name}.csv", index=False)
    metrics = main(settled())
    table = pq.read_table(workspace / "data/prepared/unlabelled.parquet")
    assert table["text"].to_pylist() == ["mine", "one", "two"]
    assert metrics["unlabelled"] == {"rows": 3, "dropped_leaks": 1, "dropped_repeats": 1}


@given(
    sizes=st.lists(st.integers(2, 12), min_size=2, max_size=5),
    folds=st.integers(2, 6),
    seed=st.integers(0, 50),
)
def test_folds_share_out_every_row_once_and_every_class_evenly(
    sizes: list[int], folds: int, seed: int
) -> None:
    rows = [(f"text {name} {i}", f"class {name}") for name, n in enumerate(sizes) for i in range(n)]
    whole = frame(*rows)
    if min(sizes) < folds:
        with pytest.raises(DataError, match=r"data\.folds: found"):
            fold_of(whole, NONE, folds, 0, seed)
        return
    parts = [fold_of(whole, NONE, folds, which, seed) for which in range(folds)]
    held_out = [text for _, validation in parts for text in validation["text"]]
    assert sorted(held_out) == sorted(whole["text"]), "each row is validation once"
    for train, validation in parts:
        assert sorted([*train["text"], *validation["text"]]) == sorted(whole["text"])
        for name, size in enumerate(sizes):
            share = int((validation["label"] == f"class {name}").sum())
            assert size // folds <= share <= -(-size // folds)


def test_a_fold_is_what_the_stage_writes(workspace: Path) -> None:
    seen = []
    for which in range(2):
        metrics = main(settled(folds=2, fold=which))
        held_out = pd.read_parquet(workspace / "data/prepared/validation.parquet")
        seen.append(set(held_out["text"]))
        assert metrics["rows"] == {"train": 20, "validation": 20, "test": 10}
    assert len(seen[0] | seen[1]) == 40
    with pytest.raises(UsageError, match=r"data\.fold: found 2 of 2"):
        settled(folds=2, fold=2)
