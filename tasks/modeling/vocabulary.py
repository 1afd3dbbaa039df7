"""Trim a WordPiece vocabulary to what a data set uses, and every character besides.

Half of a small encoder is its embedding table, and a domain uses a tenth of it. A piece
that goes is spelled with smaller pieces from then on; single characters and their
continuations all stay, so that no text becomes unreadable that was readable before.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from tasks.errors import ParamsError


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


def trim(tokenizer_json: str, texts: Iterable[str], *, min_count: int) -> TrimmedVocabulary:
    """Keep pieces that occur at least `min_count` times in `texts`, specials, and characters.

    Raises:
        ParamsError: the tokenizer is no WordPiece.
    """
    spec = json.loads(tokenizer_json)
    if spec["model"]["type"] != "WordPiece":
        raise ParamsError(
            f"distill.vocabulary.trim: found a {spec['model']['type']} tokenizer, "
            "expected WordPiece",
            next_command="stillroom compress --set distill.vocabulary.trim=false",
        )
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    counts: Counter[int] = Counter()
    for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        counts.update(encoding.ids)

    prefix = spec["model"]["continuing_subword_prefix"]
    added = {token["content"]: token["id"] for token in spec["added_tokens"]}
    specials = {*added, spec["model"]["unk_token"]}
    pieces = added | spec["model"]["vocab"]  # an added token need not be in the model's own table
    kept = [
        (piece, old)
        for piece, old in sorted(pieces.items(), key=lambda item: item[1])
        if counts[old] >= min_count or piece in specials or len(piece.removeprefix(prefix)) == 1
    ]
    return TrimmedVocabulary(_rewrite(spec, kept), tuple(old for _, old in kept))


def _rewrite(spec: dict[str, Any], kept: Sequence[tuple[str, int]]) -> str:
    """The tokenizer file with new ids everywhere an id stands."""
    new_id = {old: new for new, (_, old) in enumerate(kept)}
    own = spec["model"]["vocab"]
    spec["model"]["vocab"] = {piece: new_id[old] for piece, old in kept if piece in own}
    for token in spec["added_tokens"]:
        token["id"] = new_id[token["id"]]
    _renumber(spec.get("post_processor") or {}, new_id)
    spec["padding"] = spec["truncation"] = None
    return json.dumps(spec, ensure_ascii=False, separators=(",", ":"))


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


def unknown_share(tokenizer_json: str, texts: Sequence[str]) -> float:
    """Share of pieces that are the unknown piece, specials not counted; 0 if there is none."""
    piece = json.loads(tokenizer_json)["model"].get("unk_token")
    if piece is None:
        return 0.0
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    unknown: Any = tokenizer.token_to_id(piece)
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    total = sum(len(e.ids) for e in encodings)
    return sum(e.ids.count(unknown) for e in encodings) / max(total, 1)
