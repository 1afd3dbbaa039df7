"""How teacher and candidate behave off the beaten track.

Both are functions from texts to logits ``[texts, classes]``; what is reported is the candidate
beside its teacher, since a weakness that both share is not compression's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import roc_auc_score

from tasks.evaluation.comparison import mcnemar
from tasks.evaluation.perturbations import PERTURBATIONS, perturbed
from tasks.evaluation.quality import log_softmax
from tasks.evaluation.statistics import paired_bootstrap
from tasks.evaluation.swaps import Swaps

Logits = Callable[[Sequence[str]], np.ndarray]
SLICE_ROWS = 20
"""A slice of fewer texts says nothing."""
NAMED = 20
"""Of a column, the slices of too few texts that are named, the largest: it may hold one a text."""
NEAR = 0.7
"""Cosine of TF-IDF from which on a test text is a near-duplicate of a training text."""
NEIGHBOURS = 5
RESAMPLES = 1000


def confidence(logits: np.ndarray) -> np.ndarray:
    """Largest probability of each row."""
    return np.asarray(np.exp(log_softmax(logits)).max(-1))


def robustness(
    teacher: Logits,
    candidate: Logits,
    texts: Sequence[str],
    labels: np.ndarray,
    clean: tuple[np.ndarray, np.ndarray],
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """Accuracy of both on altered texts; drops in points against the same texts as they were.

    Args:
        clean: answers ``[n]`` of teacher and candidate to the texts as they are.
    """
    before = [float((answers == labels).mean()) for answers in clean]
    rows = []
    for name, perturbation in PERTURBATIONS.items():
        altered = perturbed(texts, perturbation, seed)
        answers = [model(altered).argmax(-1) for model in (teacher, candidate)]
        after = [float((found == labels).mean()) for found in answers]
        rows.append({
            "name": name, "n": len(texts), "teacher": after[0], "candidate": after[1],
            "teacher_drop": 100 * (before[0] - after[0]),
            "candidate_drop": 100 * (before[1] - after[1]),
            "flip_rate": float((answers[1] != clean[1]).mean()),
        })  # fmt: skip
    return rows


def out_of_distribution(
    inside: Mapping[str, np.ndarray], outside: Mapping[str, np.ndarray], source: str
) -> dict[str, Any] | None:
    """How well confidence tells texts of the data from texts from elsewhere: AUROC of max softmax.

    Hendrycks & Gimpel 2017, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples".

    Args:
        inside, outside: logits by model. None where one of them is no number.
    """
    found = {}
    for name, own in inside.items():
        scores = np.concatenate([confidence(own), confidence(outside[name])])
        truth = np.arange(len(scores)) < len(own)
        if not np.isfinite(scores).all():
            return None
        found[name] = float(roc_auc_score(truth, scores))
    rows = len(next(iter(outside.values())))
    return {"source": source, "n": rows, "auroc": found, "score": "max softmax"}


def slices(
    groups: Mapping[str, Sequence[str]], teacher: np.ndarray, candidate: np.ndarray, *, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Accuracy of both in every value of every slice that has rows enough, and the other values.

    ``gap`` is the candidate's accuracy there minus its accuracy over all, in points; the
    interval is that of its drop against the teacher there. ``p_value`` is that of McNemar's exact
    test times the number of slices (Bonferroni): among many, some differ by chance.

    Args:
        groups: by slice, the value of each text.
        teacher, candidate: ``[n]`` bool, who is right.
    """
    rows: list[dict[str, Any]] = []
    few: list[dict[str, Any]] = []
    for name, values in groups.items():
        column, rare = np.asarray(values, dtype=str), list[dict[str, Any]]()
        for value, count in zip(*np.unique(column, return_counts=True), strict=True):
            mine = column == value
            if count < SLICE_ROWS:
                rare.append({"slice": name, "value": str(value), "n": int(count)})
                continue
            drop = paired_bootstrap(teacher[mine], candidate[mine], resamples=RESAMPLES, seed=seed)
            own, theirs = float(candidate[mine].mean()), float(teacher[mine].mean())
            rows.append({
                "slice": name, "value": str(value), "n": int(count), "teacher": theirs,
                "candidate": own, "gap": 100 * (own - float(candidate.mean())),
                "teacher_gap": 100 * (theirs - float(teacher.mean())),
                "low": drop.low, "high": drop.high,
                "p_value": mcnemar(teacher[mine], candidate[mine])["p_value"],
            })  # fmt: skip
        rare.sort(key=lambda one: (-one["n"], one["value"]))
        few += rare[:NAMED]
        if rest := rare[NAMED:]:
            texts = sum(one["n"] for one in rest)
            few.append({"slice": name, "value": f"{len(rest)} more values", "n": texts})
    return [{**row, "p_value": min(row["p_value"] * len(rows), 1.0)} for row in rows], few


def length_terciles(texts: Sequence[str]) -> list[str]:
    """``short``, ``medium`` or ``long`` for each text, by its number of words."""
    words = np.array([len(text.split()) for text in texts])
    low, high = np.percentile(words, [100 / 3, 200 / 3])
    return ["short" if n <= low else "medium" if n <= high else "long" for n in words]


def counterfactuals(
    teacher: Logits, candidate: Logits, texts: Sequence[str], swaps: Swaps
) -> list[dict[str, Any]]:
    """How often an answer changes with a word that ought not to matter.

    Of a group of prefixes every text gets the two of one pair, each pair in turn.
    """
    rows = []
    pairs = {a.casefold(): b for pair in swaps.pairs for a, b in (pair, pair[::-1])}
    changed = [(t, s) for t in texts if (s := swapped(t, pairs)) != t]
    if changed:
        rows.append(_flip_rates("words swapped where they occur", changed, teacher, candidate))
    for name, group in swaps.prefixes.items():
        both = [(f"{a} {t}", f"{b} {t}") for (a, b), t in
                zip(_around(group, len(texts)), texts, strict=True)]  # fmt: skip
        rows.append(_flip_rates(name, both, teacher, candidate))
    return rows


def swapped(text: str, pairs: Mapping[str, str]) -> str:
    """A text with every word that stands in a pair replaced by the other one, capitals kept.

    Args:
        pairs: by word, case-folded, the one that takes its place.
    """

    def other(found: re.Match[str]) -> str:
        word = found[0]
        put = pairs.get(word.casefold(), word)
        return put[:1].upper() + put[1:] if word[:1].isupper() else put

    return re.sub(r"\w+", other, text)


def _around(pairs: Sequence[Sequence[str]], count: int) -> list[Sequence[str]]:
    return [pairs[i % len(pairs)] for i in range(count)]


def _flip_rates(
    name: str, both: Sequence[tuple[str, str]], teacher: Logits, candidate: Logits
) -> dict[str, Any]:
    first, second = [a for a, _ in both], [b for _, b in both]
    rates = [float((model(first).argmax(-1) != model(second).argmax(-1)).mean())
             for model in (teacher, candidate)]  # fmt: skip
    return {"name": name, "n": len(both), "teacher_flip_rate": rates[0],
            "candidate_flip_rate": rates[1]}  # fmt: skip


def memorisation(
    train: Sequence[str], texts: Sequence[str], logits: np.ndarray, *, seed: int
) -> dict[str, Any] | None:
    """Whether test texts that nearly stand in train are answered with more confidence than
    their neighbours: the `NEIGHBOURS` most alike among those test texts that do not.

    None where there are too few of either kind, or a logit is no number.

    Args:
        logits: the candidate's, ``[texts, classes]``.

    Returns:
        ``confidence_far`` is the mean of the neighbours'. The interval is a bootstrap over the
        near-duplicates, each with its own neighbours.
    """
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3)).fit(train)
    known, asked = vectors.transform(train), vectors.transform(texts)
    near = np.array([(known @ row.T).max() >= NEAR for row in asked])
    sure = confidence(logits)
    if min(near.sum(), (~near).sum()) < SLICE_ROWS or not np.isfinite(sure).all():
        return None
    alike = (asked[near] @ asked[~near].T).toarray()
    neighbours = np.argsort(-alike, axis=1, kind="stable")[:, :NEIGHBOURS]
    beside = sure[~near][neighbours].mean(axis=1)
    gaps = sure[near] - beside
    drawn = np.random.default_rng(seed).choice(gaps, (RESAMPLES, len(gaps)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return {"pairs": len(gaps), "confidence_near": float(sure[near].mean()),
            "confidence_far": float(beside.mean()), "gap": float(gaps.mean()),
            "low": float(low), "high": float(high)}  # fmt: skip


def long_texts(
    teacher: Logits,
    candidate: Logits,
    texts: Sequence[str],
    labels: np.ndarray,
    posts: Sequence[str],
    *,
    pieces: Callable[[str], int],
    max_length: int,
) -> dict[str, Any]:
    """What both answer where a text is cut off: asked before a long one, after it, not at all.

    The last two say something of posts alone: other texts of `texts` ask something themselves.

    ``teacher`` and ``candidate`` are the accuracies where it is asked first, so that what is cut
    off is not what is asked; where it is asked last, a good model is unsure.

    Args:
        posts: texts that belong to no class, one for each of `texts`; of none, other texts of
            `texts` stand in, as many as it takes.
        pieces: of a text, special ones included.
    """
    others = [" ".join([*texts[i + 1 :], *texts[:i]][: max_length // 4]) for i in range(len(texts))]
    rest = [posts[i % len(posts)] for i in range(len(texts))] if posts else others
    kinds = {"asked before it": [f"{text} {post}" for text, post in zip(texts, rest, strict=True)],
             "asked after it": [f"{post} {text}" for text, post in zip(texts, rest, strict=True)],
             "not asked": rest}  # fmt: skip
    if not posts:
        kinds = {"asked before it": kinds["asked before it"]}
    rows = []
    for name, long in kinds.items():
        theirs, own = teacher(long), candidate(long)
        asked = name != "not asked"
        rows.append({
            "name": name,
            "teacher": float((theirs.argmax(-1) == labels).mean()) if asked else None,
            "candidate": float((own.argmax(-1) == labels).mean()) if asked else None,
            "agreement": float((theirs.argmax(-1) == own.argmax(-1)).mean()),
            "teacher_confidence": float(confidence(theirs).mean()),
            "candidate_confidence": float(confidence(own).mean()),
        })  # fmt: skip
    return {
        "source": "data.long_texts" if posts else "test texts, as many as it takes",
        "n": len(texts),
        "truncated_share": float(np.mean([pieces(one) > max_length for one in
                                          kinds["asked before it"]])),
        "teacher": rows[0]["teacher"], "candidate": rows[0]["candidate"], "rows": rows,
    }  # fmt: skip


def scripts(
    candidate: Logits, sentences: Mapping[str, Sequence[str]], unknown_share: Callable[[str], float]
) -> list[dict[str, Any]]:
    """What the candidate does with scripts that it was not trained on."""
    return [
        {"script": script, "n": len(lines),
         "unknown_share": float(np.mean([unknown_share(line) for line in lines])),
         "mean_confidence": float(confidence(candidate(lines)).mean())}
        for script, lines in sentences.items()
    ]  # fmt: skip
