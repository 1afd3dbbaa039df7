"""Which texts are validation, where the data brings none: a share of train, or a fold of all."""

from __future__ import annotations

import pandas as pd
from sklearn.model_selection import StratifiedKFold

from tasks.errors import DataError


def fold(texts: pd.Series[str]) -> pd.Series[str]:
    """What two texts share that differ in case and spaces alone."""
    return texts.str.casefold().str.split().str.join(" ")


def eligible(frame: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Rows that may be validation: the first of each text, of one label, that test has not.

    A text goes with all its copies. What stands in test is not learned from, so a class whose
    other texts do keeps the one that is left.
    """
    key = fold(frame["text"])
    one_label = frame["label"].groupby(key).transform("nunique") == 1
    return frame[one_label & ~key.duplicated() & ~key.isin(set(fold(test["text"])))]


def taken_out(frame: pd.DataFrame, chosen: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rest, and the rows with one of the chosen texts."""
    key = fold(frame["text"])
    mine = key.isin(set(key[chosen.index]))
    return frame[~mine], frame[mine]


def split_off(
    train: pd.DataFrame, test: pd.DataFrame, fraction: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take a share of train's texts as validation, of each class its part to within one.

    Every class keeps a text in train. What rounding leaves goes to the classes that are owed most,
    by lot among equals, so that many small classes give as large a share as a few large ones.

    Raises:
        DataError: no class has a second text.
    """
    shuffled = eligible(train, test).sample(frac=1.0, random_state=seed)
    counts = shuffled["label"].value_counts(sort=False)  # in the order of the lots
    owed = counts * fraction
    quota = owed.astype(int).clip(upper=counts - 1)
    due = (owed - quota).where(quota < counts - 1, -1.0).sort_values(ascending=False, kind="stable")
    left = max(round(len(shuffled) * fraction) - int(quota.sum()), int(quota.sum() == 0))
    quota[due[due >= 0].index[:left]] += 1
    if not quota.sum():
        raise DataError(
            "data.train: found one text of each class that test has not, expected more, or a "
            "data.validation",
            next_command="stillroom compress --set data.validation=FILE",
        )
    mine = shuffled.groupby("label").cumcount() < shuffled["label"].map(quota)
    return taken_out(train, shuffled[mine])


def fold_of(
    frame: pd.DataFrame, test: pd.DataFrame, folds: int, which: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One fold of k as validation and the rest as train, every class as even as can be.

    Raises:
        DataError: a class has fewer texts than there are folds.
    """
    texts = eligible(frame, test)
    counts = texts["label"].value_counts().reindex(frame["label"].unique(), fill_value=0)
    fewest = int(counts.min())
    if fewest < folds:
        raise DataError(
            f"data.folds: found {folds}, and class {counts.idxmin()!r} has {fewest} texts that "
            "test has not; expected one in each fold",
            next_command=f"stillroom compress --set data.folds={fewest if fewest > 1 else 0}",
        )
    cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
    _, validation = list(cut.split(texts["text"], texts["label"]))[which]
    return taken_out(frame, texts.iloc[validation])
