"""Trim a WordPiece, byte-pair or Unigram vocabulary to what a data set uses, and every character.

Half of a small encoder is its embedding table, and a domain uses a tenth of it. A piece
that goes is spelled with smaller pieces from then on; single characters and their
continuations all stay, so that no text becomes unreadable that was readable before.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from tokenizers import Encoding, Tokenizer

from tasks.errors import ParamsError

CHUNK = 8192
"""Texts that a tokenizer is given at a time."""
_BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A piece that stands for one byte of a character without a piece of its own."""


@dataclass(frozen=True)
class TrimmedVocabulary:
    """A smaller tokenizer and the old ids of its rows, in their new order."""

    tokenizer_json: str
    kept_ids: tuple[int, ...]


def plain_tokenizer(tokenizer_json: str, *, max_length: int) -> Tokenizer:
    """A tokenizer that truncates and does not pad, whatever the file says."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def encodings(
    tokenizer: Tokenizer, texts: Iterable[str], *, specials: bool = True
) -> Iterator[Encoding]:
    """What a tokenizer makes of each text; no more than `CHUNK` of them are in memory.

    Args:
        specials: whether it puts its special pieces around a text.
    """
    rest = iter(texts)
    while part := list(islice(rest, CHUNK)):
        yield from tokenizer.encode_batch_fast(part, add_special_tokens=specials)


def piece_counts(tokenizer_json: str, texts: Iterable[str]) -> Counter[int]:
    """How often each piece occurs, by its id; texts whole and without special pieces."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    counts: Counter[int] = Counter()
    for encoding in encodings(tokenizer, texts, specials=False):
        counts.update(encoding.ids)
    return counts


def trim(
    tokenizer_json: str, texts: Iterable[str], *, min_count: int, always: Collection[int] = ()
) -> TrimmedVocabulary:
    """Keep pieces that occur at least `min_count` times in `texts`, specials, and characters.

    Of a byte-pair tokenizer also the pieces that a kept one is merged from, of a Unigram one those
    that it cannot do without: a text whose pieces are all kept is then split as before.

    Args:
        always: ids that stay, too, such as that of padding.

    Raises:
        ParamsError: the tokenizer is none of WordPiece, byte-pair and Unigram, or marks parts of
            words.
    """
    spec = json.loads(tokenizer_json)
    model = spec["model"]
    _check(model)
    counts = piece_counts(tokenizer_json, texts)

    prefix = model.get("continuing_subword_prefix") or ""
    added = {token["content"] for token in spec["added_tokens"]}
    unknown = unknown_id(tokenizer_json)
    rows = _rows(spec)
    always = {*always, *_ends(spec.get("post_processor") or {})}
    wanted = {
        piece
        for piece, old in rows
        if counts[old] >= min_count
        or piece in added
        or old == unknown
        or old in always
        or len(piece.removeprefix(prefix)) == 1
        or _BYTE.fullmatch(piece)
    }
    if model["type"] == "BPE":
        wanted = _keep_merges(model, wanted)
    elif model["type"] == "Unigram":
        wanted |= _irreplaceable(model["vocab"])
    kept = sorted(((p, old) for p, old in rows if p in wanted), key=lambda item: item[1])
    return TrimmedVocabulary(_rewrite(spec, kept), tuple(old for _, old in kept))


def _check(model: dict[str, Any]) -> None:
    """Refuse a tokenizer whose pieces cannot be told from characters or merges."""
    marked = model["type"] == "BPE" and (
        model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    )
    if model["type"] not in ("WordPiece", "BPE", "Unigram") or marked:
        raise ParamsError(
            f"distill.vocabulary.trim: found a {model['type']} tokenizer"
            f"{' that marks parts of words' if marked else ''}, expected WordPiece, Unigram or "
            "plain BPE",
            next_command="stillroom compress --set distill.vocabulary.trim=false",
        )


def _rows(spec: dict[str, Any]) -> list[tuple[str, int]]:
    """Pieces and their ids: the model's own, then the added tokens that it does not have.

    A Unigram model's ids are places in its list, where a piece may stand twice (CamemBERT's <unk>).
    """
    own = spec["model"]["vocab"]
    rows = [*own.items()] if isinstance(own, dict) else [(p, at) for at, (p, _) in enumerate(own)]
    known = {piece for piece, _ in rows}
    added = ((token["content"], token["id"]) for token in spec["added_tokens"])
    return rows + [(piece, new) for piece, new in added if piece not in known]


def _keep_merges(model: dict[str, Any], wanted: set[str]) -> set[str]:
    """Drop the merges that need a piece which goes; gives the wanted and what they are made of.

    What fires inside a piece does not depend on its neighbours, so the merges of each piece
    alone are all that a text of such pieces needs, and fewer merges never come before them.
    """
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
    kept = set(wanted)
    for piece in wanted:
        kept.update(_made_of(piece, ranks))
    model["merges"] = [[a, b] for a, b in merges if {a, b, a + b} <= kept]
    return kept


def _made_of(piece: str, ranks: dict[tuple[str, str], int]) -> set[str]:
    """All pieces on the way from characters to a piece (Sennrich et al. 2016, algorithm 1)."""
    parts, seen = list(piece), set[str]()
    while found := [(ranks[p], i) for i, p in enumerate(pairwise(parts)) if p in ranks]:
        _, at = min(found)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        seen.add(parts[at])
    return seen


def _irreplaceable(vocab: Sequence[tuple[str, float]]) -> set[str]:
    """What a Unigram model keeps besides: its least likely piece, and what characters cannot spell.

    The best split of a text stays the best while its pieces are there: no other gets likelier, and
    of equal ones the library takes the one whose last piece is longest, then the last but one, as
    before. But an unknown character costs ten more than the least likely piece of all.
    """
    characters = {piece for piece, _ in vocab if len(piece) == 1}
    least, _ = min(vocab, key=lambda entry: entry[1])
    return {least} | {piece for piece, _ in vocab if not characters.issuperset(piece)}


def _rewrite(spec: dict[str, Any], kept: Sequence[tuple[str, int]]) -> str:
    """The tokenizer file with new ids everywhere an id stands."""
    new_id = {old: new for new, (_, old) in enumerate(kept)}
    model = spec["model"]
    own = model["vocab"]
    if model["type"] == "Unigram":
        model["vocab"] = [own[old] for _, old in kept if old < len(own)]
        model["unk_id"] = new_id.get(model.get("unk_id"))
    else:
        model["vocab"] = {piece: new_id[old] for piece, old in kept if piece in own}
    for token in spec["added_tokens"]:
        token["id"] = new_id[token["id"]]
    _renumber(spec.get("post_processor") or {}, new_id)
    spec["padding"] = spec["truncation"] = None
    return json.dumps(spec, ensure_ascii=False, separators=(",", ":"))


def _ends(processor: dict[str, Any]) -> set[int]:
    """Ids that a post-processor puts around a text."""
    inner = [_ends(one) for one in processor.get("processors", [])]
    special = [set(one["ids"]) for one in processor.get("special_tokens", {}).values()]
    ends = {processor[end][1] for end in ("cls", "sep") if end in processor}
    return ends.union(*inner, *special)


def _renumber(processor: dict[str, Any], new_id: dict[int, int]) -> None:
    """Give the special tokens of a post-processor their new ids."""
    for inner in processor.get("processors", []):  # Sequence
        _renumber(inner, new_id)
    for special in processor.get("special_tokens", {}).values():  # TemplateProcessing
        special["ids"] = [new_id[old] for old in special["ids"]]
    for end in ("cls", "sep"):  # RobertaProcessing, BertProcessing
        if end in processor:
            processor[end][1] = new_id[processor[end][1]]


def pad_token(tokenizer_json: str, pad_id: int) -> str:
    """The piece that has the padding id."""
    token = Tokenizer.from_str(tokenizer_json).id_to_token(pad_id)
    if token is None:
        raise ParamsError(
            f"teacher: found pad_token_id {pad_id}, unknown to the tokenizer",
            next_command="stillroom compress --set teacher.source=package",
        )
    return token


def unknown_id(tokenizer_json: str) -> int | None:
    """The id of the piece that stands for what a tokenizer cannot spell; None if it has none."""
    model = json.loads(tokenizer_json)["model"]
    unigram = model["type"] == "Unigram"
    found: int | None = (
        model.get("unk_id") if unigram else model["vocab"].get(model.get("unk_token"))
    )
    return found


def unknown_share(tokenizer_json: str, texts: Iterable[str]) -> float:
    """Share of pieces that are the unknown piece, specials not counted; 0 if there is none."""
    unknown = unknown_id(tokenizer_json)
    if unknown is None:
        return 0.0
    counts = piece_counts(tokenizer_json, texts)
    return counts[unknown] / max(counts.total(), 1)
