"""Compare what two models make of a text though they cut it into different pieces.

A student may have a trimmed vocabulary, another WordPiece table or byte-pair encoding. The
words of the text are the same for both, found by character in the text itself: each piece
belongs to a word, and what a model computes for pieces is pooled to words.

    words = word_ids(text, encoding)               # a piece → its word, −1 for none
    shared = align(student_words, teacher_words)   # words that both have whole
    pool(states, words, shared.shape[1])           # a vector for each word
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import torch
from tokenizers import Encoding

NO_WORD = -1
"""The word of a piece that has none: separators, padding, pieces of words that are not whole."""
FIRST = 0
"""The word of the special piece that opens a text (``[CLS]``, ``<s>``); the text's start at 1."""

# over a string with one letter per character of the text, see `_kind`
_WORD = re.compile(r"i|w+(?:aw+)*|[ap]+")


def word_ids(text: str, encoding: Encoding) -> list[int]:
    """The word of each piece, by the pieces' character offsets in the text.

    A word is a run of letters and digits, with the apostrophes inside it; a run of
    punctuation; or one ideograph. The last is how WordPiece cuts Chinese, the first two hold
    for WordPiece ("don", "'", "t") as for byte-pair encoding ("don", "'t"). Normalisers that
    lowercase, strip accents or drop characters change nothing: offsets are of the text as given.

    A word that truncation has cut, or that shares a piece with its neighbour, is not whole:
    all its pieces get `NO_WORD`.

    Args:
        encoding: of `Tokenizer.encode` or `encode_batch`, special pieces included.

    Raises:
        ValueError: the encoding has no offsets, as those of `encode_batch_fast`.
    """
    owners = _owners(text)
    specials = encoding.special_tokens_mask
    pieces = [_touched(owners, start, end) for start, end in encoding.offsets]
    if owners and not all(specials) and not any(end for _, end in encoding.offsets):
        raise ValueError("found an encoding without offsets, expected one of encode_batch")
    broken = {word for touched in pieces if len(touched) > 1 for word in touched}
    for rest in encoding.overflowing:
        for start, end in rest.offsets:
            broken |= _touched(owners, start, end)
    words = [
        NO_WORD if special or len(touched) != 1 or touched <= broken else min(touched)
        for special, touched in zip(specials, pieces, strict=True)
    ]
    if specials and specials[0]:
        words[0] = FIRST
    return words


def align(student_words: torch.Tensor, teacher_words: torch.Tensor) -> torch.Tensor:
    """Which words both sides have: bool ``[batch, words]``, as wide as the longest text needs.

    Args:
        student_words: ``[batch, student pieces]`` int64, rows padded with `NO_WORD`.
        teacher_words: ``[batch, teacher pieces]`` int64, likewise, of the same texts.
    """
    count = 1 + max(FIRST, min(int(student_words.max()), int(teacher_words.max())))
    both: torch.Tensor = _members(student_words, count).any(-1)
    return both & _members(teacher_words, count).any(-1)


def pool(states: torch.Tensor, words: torch.Tensor, count: int) -> torch.Tensor:
    """Mean over the pieces of each word; zeros for a word without pieces.

    A product with a matrix, not a scatter: on a GPU that has one result only.

    Args:
        states: ``[batch, pieces, channels]``.
        words: ``[batch, pieces]`` int64.
        count: words up to here, those beyond are left out.

    Returns:
        ``[batch, count, channels]``.
    """
    return _averaging(_members(words, count).to(states.dtype)) @ states


def pool_attention(maps: torch.Tensor, words: torch.Tensor, count: int) -> torch.Tensor:
    """Attention from word to word: summed over a word's key pieces, averaged over its queries.

    Clark et al. 2019, "What Does BERT Look At?", section 4.1. What goes to pieces of no word
    is left out, so that a row may sum to less than one.

    Args:
        maps: ``[batch, heads, pieces, pieces]``, queries before keys.
        words, count: as in `pool`.

    Returns:
        ``[batch, heads, count, count]``.
    """
    members = _members(words, count).to(maps.dtype).unsqueeze(1)
    return _averaging(members) @ maps @ members.transpose(-1, -2)


def _members(words: torch.Tensor, count: int) -> torch.Tensor:
    """Bool ``[batch, count, pieces]``: which pieces make up which word."""
    return words.unsqueeze(1) == torch.arange(count, device=words.device).view(1, -1, 1)


def _averaging(members: torch.Tensor) -> torch.Tensor:
    """Rows that sum to one, or to zero where a word has no piece."""
    return members / members.sum(-1, keepdim=True).clamp(min=1)


def _owners(text: str) -> list[int]:
    """For each character the number of its word, from 1; `NO_WORD` for white space."""
    owners = [NO_WORD] * len(text)
    for number, match in enumerate(_WORD.finditer("".join(map(_kind, text))), start=FIRST + 1):
        owners[match.start() : match.end()] = [number] * (match.end() - match.start())
    return owners


def _touched(owners: list[int], start: int, end: int) -> set[int]:
    """The words that a span of characters lies in."""
    return set(owners[start:end]) - {NO_WORD}


@lru_cache(maxsize=4096)
def _kind(character: str) -> str:
    """White space ``s``, apostrophe ``a``, ideograph ``i``, punctuation ``p``, else a word's ``w``.

    Combining marks and invisible characters are parts of words, since normalisers drop them,
    and so are symbols beyond ASCII ("€5"), since BERT does not cut there.
    """
    if character.isspace():
        return "s"
    if character in "'’":
        return "a"
    if "CJK" in (name := unicodedata.name(character, "")) and "IDEOGRAPH" in name:
        return "i"
    punctuation = "PS" if character.isascii() else "P"
    return "p" if unicodedata.category(character)[0] in punctuation and character != "_" else "w"
