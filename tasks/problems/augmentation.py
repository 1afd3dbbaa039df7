"""Altered copies of training texts, made without a network, for a teacher to label.

A student that copies its teacher on these sees more of what the teacher does than the training
texts alone can show, also where a copy means something else than its original or nothing at
all. For that reason no copy has a label but the teacher's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tasks import schema


def augment(texts: Sequence[str], config: schema.Augment, *, seed: int) -> Iterator[str]:
    """At most ``config.copies`` altered copies of each text, in the order of the texts.

    A copy may first lose its end to another text's (`splice`); then single words give way to
    others (`replace_words`), go (`drop_words`) or change places (`swap_words`): Wei and Zou
    2019, "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text
    Classification Tasks", section 2, with words drawn from the training texts instead of a
    thesaurus; Tang et al. 2019, "Distilling Task-Specific Knowledge from BERT into Simple
    Neural Networks", section 3.2, for masking and n-gram sampling.

    Words are what spaces separate. A copy that is one of `texts`, or an earlier copy of the
    same text, is left out; case and spaces make no difference. The same arguments give the
    same copies on every machine, and more copies begin with those that fewer would have been.

    A copy may by chance be a text of validation or test, which are not opened here. That
    gives nothing away: the teacher, which has not seen them either, labels it as any other.

    Args:
        texts: all training texts. Besides them their distinct words and 8 bytes a text are
            held, never the copies.
        seed: of all draws; each text has a stream of its own.
    """
    if not config.copies:
        return
    words, edges = unigrams(texts)
    originals = Seen(texts)
    for index, text in enumerate(texts):
        random = np.random.Generator(np.random.PCG64([seed, index]))
        copies = Seen()
        for _ in range(config.copies):
            copy = text.split()
            if random.random() < config.splice and len(texts) > 1:
                other = int(random.random() * (len(texts) - 1))
                other += other >= index  # any text but this one
                copy = splice(copy, texts[other].split(), random.random())
            copy = replace_words(copy, config.replace, words, edges, random)
            copy = drop_words(copy, config.drop, random)
            copy = swap_words(copy, config.swap, random)
            made = " ".join(copy)
            if made and made not in originals and copies.add(made):
                yield made


def unigrams(texts: Iterable[str]) -> tuple[list[str], np.ndarray]:
    """Distinct words, sorted, and the running sum of their counts ``[words]`` int64."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.split())
    words = sorted(counts)
    return words, np.cumsum([counts[word] for word in words], dtype=np.int64)


def splice(words: Sequence[str], other: Sequence[str], cut: float) -> list[str]:
    """The beginning of one text and the end of another, both cut at the same share.

    Args:
        words: at least the first stays, and the last goes unless it is the only one.
        other: at least the last comes.
        cut: 0 ≤ cut < 1.
    """
    return [*words[: 1 + int(cut * (len(words) - 1))], *other[int(cut * len(other)) :]]


def replace_words(
    words: Sequence[str],
    p: float,
    pool: Sequence[str],
    edges: np.ndarray,
    random: np.random.Generator,
) -> list[str]:
    """Each word gives way with probability `p` to one drawn by frequency.

    Args:
        pool, edges: of `unigrams`. A word may be drawn in its own place.
    """
    chosen, draws = random.random(len(words)) < p, random.random(len(words))
    return [
        pool[int(np.searchsorted(edges, int(draw * edges[-1]), side="right"))] if hit else word
        for word, hit, draw in zip(words, chosen, draws, strict=True)
    ]


def drop_words(words: Sequence[str], p: float, random: np.random.Generator) -> list[str]:
    """Each word goes with probability `p`; if all would, one stays."""
    if not words:
        return []
    stays = random.random(len(words)) >= p
    if not stays.any():
        stays[int(random.random() * len(words))] = True
    return [word for word, keep in zip(words, stays, strict=True) if keep]


def swap_words(words: Sequence[str], p: float, random: np.random.Generator) -> list[str]:
    """Each word changes places with the next one with probability `p`; none moves twice."""
    swapped, place = list(words), 0
    chosen = random.random(max(len(words) - 1, 0)) < p
    while place < len(words) - 1:
        if chosen[place]:
            swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
            place += 1
        place += 1
    return swapped


class Seen:
    """Texts that are known, case and spaces apart, by 64 bits of their hash.

    Among a million texts the chance that a new one is mistaken for one of them is 5e-14.

    Args:
        texts: are held at 8 bytes each; what is added later at some 100.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._first = np.unique(np.fromiter(map(_mark, texts), np.uint64))
        self._added: set[int] = set()

    def __contains__(self, text: str) -> bool:
        return self._has(_mark(text))

    def add(self, text: str) -> bool:
        """Whether it was new."""
        mark = _mark(text)
        if self._has(mark):
            return False
        self._added.add(mark)
        return True

    def _has(self, mark: int) -> bool:
        place = int(np.searchsorted(self._first, np.uint64(mark)))
        found = place < len(self._first) and int(self._first[place]) == mark
        return found or mark in self._added


def _mark(text: str) -> int:
    folded = " ".join(text.casefold().split()).encode("utf-8")
    return int.from_bytes(hashlib.sha256(folded).digest()[:8], "big")
