"""What users do to texts: typing errors, case, words left out, messages cut short.

Each is a pure function of a text and a generator, and leaves a text without words alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Perturbation = Callable[[str, np.random.Generator], str]
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
"""Of a keyboard: a neighbour is the key beside."""
TYPO_WORDS = 0.25
"""Share of the words of four letters or more that get one typing error."""
DROPPED_WORDS = 0.2


def typos(text: str, generator: np.random.Generator) -> str:
    """One error in a quarter of the longer words: a neighbouring key, a swap, a loss, a double."""
    words = text.split(" ")
    for index, word in enumerate(words):
        if len(word) >= 4 and generator.random() < TYPO_WORDS:
            words[index] = _mistyped(word, generator)
    return " ".join(words)


def _mistyped(word: str, generator: np.random.Generator) -> str:
    """A word with one error at an inner letter."""
    at = int(generator.integers(1, len(word) - 1))
    before, letter, after = word[:at], word[at], word[at + 1 :]
    match int(generator.integers(4)):
        case 0:
            return before + _neighbour(letter, generator) + after
        case 1:
            return before + after[0] + letter + after[1:]
        case 2:
            return before + after
        case _:
            return before + letter + letter + after


def _neighbour(letter: str, generator: np.random.Generator) -> str:
    for row in ROWS:
        if (place := row.find(letter.lower())) >= 0:
            choices = row[max(place - 1, 0) : place] + row[place + 1 : place + 2]
            return choices[int(generator.integers(len(choices)))]
    return letter


def upper(text: str, generator: np.random.Generator) -> str:
    """ALL CAPITALS."""
    return text.upper()


def dropped_words(text: str, generator: np.random.Generator) -> str:
    """A fifth of the words left out, never all of them."""
    words = text.split()
    kept = [word for word in words if generator.random() >= DROPPED_WORDS]
    return " ".join(kept or words)


def first_half(text: str, generator: np.random.Generator) -> str:
    """The first half of the words: a message that was sent too early."""
    words = text.split()
    return " ".join(words[: (len(words) + 1) // 2]) or text


PERTURBATIONS: dict[str, Perturbation] = {
    "typing errors": typos,
    "capitals": upper,
    "words left out": dropped_words,
    "first half only": first_half,
}


def perturbed(texts: Sequence[str], perturbation: Perturbation, seed: int) -> list[str]:
    """Every text, each with a generator of its own: a text's errors do not depend on the others."""
    return [perturbation(t, np.random.default_rng([seed, i])) for i, t in enumerate(texts)]
