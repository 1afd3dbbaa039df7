"""Everything that validate finds out beyond quality, size and speed: ``evidence`` of the report.

Each member answers a question that a release manager asks before promoting. Costly ones look at
no more than `evaluation.evidence_texts` texts of test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from tasks.evaluation import behaviour
from tasks.evaluation.behaviour import Logits
from tasks.evaluation.comparison import (
    class_table,
    confusion_changes,
    flips,
    mcnemar,
    reliability,
)
from tasks.evaluation.quality import answered, ece
from tasks.evaluation.statistics import ClassDrops
from tasks.evaluation.swaps import read_swaps
from tasks.modeling.vocabulary import unknown_id
from tasks.problems.sampling import evenly, spread
from tasks.schema import Evaluation

LONG_TEXTS = 128


@dataclass(frozen=True)
class Answers:
    """Test, and what teacher and candidate said to it."""

    texts: Sequence[str]
    labels: np.ndarray
    names: Sequence[str]
    teacher: np.ndarray
    """Logits ``[n, classes]``."""
    candidate: np.ndarray

    @property
    def right(self) -> tuple[np.ndarray, np.ndarray]:
        """Who is right where, ``[n]`` bool each."""
        return (answered(self.teacher) == self.labels, answered(self.candidate) == self.labels)


def from_answers(
    answers: Answers,
    classes: ClassDrops,
    quantize: Mapping[str, Any],
    distill: Mapping[str, Any],
    p50: Mapping[str, float],
) -> dict[str, Any]:
    """What follows from the answers to test alone, and from what two stages measured.

    Args:
        p50: ms from text to label by engine, as `quantize` timed those that it chose from.
    """
    labels, names = answers.labels, answers.names
    theirs, own = answers.teacher.argmax(-1), answers.candidate.argmax(-1)
    warmth = quantize["temperature"]
    return {
        "calibration": {
            "temperature": warmth,
            # with early exits each head has a temperature of its own, and logits do not say whose
            "ece_before": None if "exits" in quantize else ece(warmth * answers.candidate, labels),
            "ece_after": ece(answers.candidate, labels),
            "bins": {"teacher": reliability(answers.teacher, labels),
                     "deploy": reliability(answers.candidate, labels)},
        },
        "mcnemar": mcnemar(*answers.right),
        "flips": flips(theirs, own, labels),
        "per_class": class_table(theirs, own, labels, names, classes),
        "confusions": confusion_changes(theirs, own, labels, names),
        "quantisation": {
            **quantize["quantisation"],
            "runtimes": [{**row, "p50_ms": p50.get(row["runtime"])}
                         for row in quantize["quantisation"]["runtimes"]],
        },
        "vocabulary": None if not distill["enabled"] else {
            "pieces": distill["vocabulary"],
            "unknown": [{"texts": place, **shares}
                        for place, shares in distill["unknown_share"].items()],
        },
    }  # fmt: skip


def from_behaviour(
    answers: Answers,
    teacher: Logits,
    candidate: Logits,
    tokenizer: Tokenizer,
    config: Evaluation,
    *,
    train: Sequence[str],
    elsewhere: Sequence[str],
    posts: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    max_length: int,
    seed: int,
) -> dict[str, Any]:
    """What both answer to texts that are altered, foreign, long, or about someone else.

    Args:
        teacher, candidate: texts to logits.
        tokenizer: the candidate's.
        elsewhere: texts that belong to no class; none leaves the question out.
        posts: long ones; of none, texts of test are strung together.
        columns: of test, by slice that the user declared.
    """
    where = evenly(len(answers.texts), config.evidence_texts)
    texts = [answers.texts[position] for position in where]
    labels, theirs, own = (
        array[where] for array in (answers.labels, answers.teacher, answers.candidate)
    )
    swaps = read_swaps(Path(config.counterfactual))
    unknown = unknown_id(tokenizer.to_str())

    def pieces(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def unknown_share(text: str) -> float:
        return float(np.mean([float(piece == unknown) for piece in pieces(text)] or [0.0]))

    foreign = spread(elsewhere, config.evidence_texts)
    some = spread(posts, 4 * LONG_TEXTS)
    long = [post for post in some if len(pieces(post)) + 2 >= max_length][:LONG_TEXTS]
    few = evenly(len(texts), LONG_TEXTS)
    slices, small_slices = behaviour.slices(
        groups(answers.texts, columns), *answers.right, seed=seed
    )
    return {
        "robustness": behaviour.robustness(
            teacher, candidate, texts, labels, (theirs.argmax(-1), own.argmax(-1)), seed=seed
        ),
        "ood": None if not foreign else behaviour.out_of_distribution(
            {"teacher": answers.teacher, "candidate": answers.candidate},
            {"teacher": teacher(foreign), "candidate": candidate(foreign)}, "data.elsewhere",
        ),
        "slices": slices,
        "small_slices": small_slices,
        "counterfactual": behaviour.counterfactuals(teacher, candidate, texts, swaps),
        "memorisation": behaviour.memorisation(train, texts, own, seed=seed),
        "long_texts": behaviour.long_texts(
            teacher, candidate, [texts[position] for position in few], labels[few], long,
            pieces=lambda text: len(pieces(text)) + 2, max_length=max_length,
        ),
        "scripts": behaviour.scripts(candidate, swaps.scripts, unknown_share),
    }  # fmt: skip


def groups(texts: Sequence[str], columns: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """What slices are cut by: each text's length, and the columns that the user declared.

    A column may have the name that length has here.
    """
    own = "length" if "length" not in columns else "length in words"
    return {own: behaviour.length_terciles(texts), **columns}


def declared_slices(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The columns of a prepared split that params declare as slices."""
    if not names:
        return {}
    table = pq.read_table(path, columns=list(names))
    return {name: [str(value) for value in table[name].to_pylist()] for name in names}


def texts_of_lengths(tokenizer: Tokenizer, texts: Sequence[str], lengths: Sequence[int],
                     count: int) -> dict[int, list[str]]:  # fmt: skip
    """Texts of about so many pieces, special ones included: cut out of test's, strung together.

    They are cut between pieces, since not every script has blanks between its words.
    """
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    special = whole.num_special_tokens_to_add(is_pair=False)
    strung = " ".join(texts[: 64 * max(lengths)])
    made: dict[int, list[str]] = {}
    if not (spans := whole.encode(strung, add_special_tokens=False).offsets):
        return made
    while len(spans) < max(lengths):
        strung += f" {strung}"
        spans = whole.encode(strung, add_special_tokens=False).offsets
    for length in lengths:
        own = max(length - special, 1)
        starts = [(index * 17) % (len(spans) - own + 1) for index in range(count)]
        made[length] = [strung[spans[at][0] : spans[at + own - 1][1]] for at in starts]
    return made
