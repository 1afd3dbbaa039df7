"""A trimmed tokenizer spells the same texts with fewer pieces in its table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tasks.errors import ParamsError
from tasks.modeling.vocabulary import plain_tokenizer, trim, unknown_id, unknown_share

WORDS = [
    "card",
    "cash",
    "where",
    "is",
    "my",
    "##ing",
    "##s",
    "withdraw",
    "##al",
    "bank",
    "[unused1]",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS = list("abcdefghijklmnopqrstuvwxyz?é中")


def spec() -> str:
    """A WordPiece tokenizer file as BERT has it, small."""
    pieces = [*SPECIAL, "[unused0]", *CHARACTERS, *(f"##{c}" for c in CHARACTERS), *WORDS]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    special = {s: {"id": s, "ids": [vocab[s]], "tokens": [s]} for s in ("[CLS]", "[SEP]")}
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
              {"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]  # fmt: skip
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "decoder": None,
        "added_tokens": [
            {"id": vocab[s], "content": s, "special": True, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False} for s in SPECIAL],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "lowercase": True,
                       "handle_chinese_chars": True, "strip_accents": False},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single,
                           "special_tokens": special},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocab,
                  "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    })  # fmt: skip


TRIMMED = trim(spec(), ["where is my card", "my cash card"], min_count=1)


def test_used_pieces_specials_and_characters_stay() -> None:
    kept = set(json.loads(TRIMMED.tokenizer_json)["model"]["vocab"])
    assert {"where", "is", "my", "card", "cash", *SPECIAL, *CHARACTERS} <= kept
    assert {f"##{c}" for c in CHARACTERS} <= kept
    assert not {"bank", "withdraw", "##al", "[unused0]", "[unused1]"} & kept


def test_ends_and_padding_stay_though_no_list_of_specials_has_them() -> None:
    plain = json.loads(spec())
    plain["added_tokens"] = []
    padding = plain["model"]["vocab"]["[PAD]"]
    made = trim(json.dumps(plain), ["where is my card"], min_count=1, always=[padding])
    assert padding in made.kept_ids
    assert Tokenizer.from_str(made.tokenizer_json).encode("my").tokens == ["[CLS]", "my", "[SEP]"]


def test_kept_ids_point_at_the_old_rows() -> None:
    old = json.loads(spec())["model"]["vocab"]
    new = json.loads(TRIMMED.tokenizer_json)["model"]["vocab"]
    assert [old[piece] for piece in sorted(new, key=new.get)] == list(TRIMMED.kept_ids)


def test_special_tokens_have_their_new_ids() -> None:
    tokenizer = Tokenizer.from_str(TRIMMED.tokenizer_json)
    assert tokenizer.encode("my card").tokens == ["[CLS]", "my", "card", "[SEP]"]
    assert tokenizer.encode("my bank").tokens == [
        "[CLS]",
        "my",
        *["b", "##a", "##n", "##k"],
        "[SEP]",
    ]


@given(st.text(alphabet="".join(CHARACTERS) + "  ", max_size=40))
def test_what_was_readable_stays_readable(text: str) -> None:
    before, after = Tokenizer.from_str(spec()), Tokenizer.from_str(TRIMMED.tokenizer_json)

    def letters(tokenizer: Tokenizer) -> str:
        return "".join(t.removeprefix("##") for t in tokenizer.encode(text).tokens)

    assert letters(before) == letters(after)
    assert unknown_share(TRIMMED.tokenizer_json, [text]) == unknown_share(spec(), [text])


def test_rare_pieces_go_by_count() -> None:
    texts = ["my card", "my cash", "my card"]
    kept = json.loads(trim(spec(), texts, min_count=2).tokenizer_json)["model"]["vocab"]
    assert "card" in kept
    assert "cash" not in kept


def test_unknown_share_counts_pieces() -> None:
    assert unknown_share(spec(), ["my ☃ card ☃"]) == pytest.approx(0.5)


def test_added_tokens_and_sequences_of_processors_are_renumbered() -> None:
    other = json.loads(spec())
    size = len(other["model"]["vocab"])
    other["added_tokens"].append({**other["added_tokens"][0], "id": size, "content": "<card>"})
    other["post_processor"] = {"type": "Sequence", "processors": [other["post_processor"]]}
    small = trim(json.dumps(other), ["my card"], min_count=1)
    tokenizer = Tokenizer.from_str(small.tokenizer_json)
    encoded = tokenizer.encode("my <card>")
    assert encoded.tokens == ["[CLS]", "my", "<card>", "[SEP]"]
    assert [small.kept_ids[i] for i in encoded.ids] == [
        other["model"]["vocab"]["[CLS]"], other["model"]["vocab"]["my"], size,
        other["model"]["vocab"]["[SEP]"]]  # fmt: skip


def test_long_texts_are_cut() -> None:
    tokenizer = plain_tokenizer(spec(), max_length=4)
    assert tokenizer.encode("my card is my bank").tokens == ["[CLS]", "my", "card", "[SEP]"]


def pair_spec(style: str) -> str:
    """A byte-pair tokenizer trained here: on bytes (RoBERTa) or with byte fallback (Llama)."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    if style == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        alphabet = []
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(PAIR_TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer.to_str()


PAIR_TEXTS = [
    f"{who} {what} {thing} at the bank {when}?"
    for who in ("where", "why", "banana", "aaaa aaa aaaaa")
    for what in ("withdraws", "withdrawing", "withdrawal", "declined")
    for thing in ("my card", "cash", "transfers", "top-ups")
    for when in ("today", "yesterday", "in the meantime", "tomorrow")
]
PAIRS = {style: pair_spec(style) for style in ("bytes", "fallback")}


@pytest.mark.parametrize("style", PAIRS)
@given(st.sets(st.sampled_from(PAIR_TEXTS), min_size=1, max_size=6))
def test_texts_of_kept_pairs_are_split_as_before(style: str, some: set[str]) -> None:
    full, small = Tokenizer.from_str(PAIRS[style]), trim(PAIRS[style], some, min_count=1)
    cut = Tokenizer.from_str(small.tokenizer_json)
    assert len(small.kept_ids) == cut.get_vocab_size() <= full.get_vocab_size()
    if len(some) < 4:  # one of four words stands in none of them; more may use every piece
        assert cut.get_vocab_size() < full.get_vocab_size()
    known = {piece for piece in full.get_vocab() if cut.token_to_id(piece) is not None}
    same = [t for t in PAIR_TEXTS if known.issuperset(full.encode(t).tokens)]
    assert some <= set(same)
    for text in same:
        assert cut.encode(text).tokens == full.encode(text).tokens
        assert [small.kept_ids[i] for i in cut.encode(text).ids] == full.encode(text).ids


@pytest.mark.parametrize("style", PAIRS)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_any_text_stays_readable_in_pairs(style: str, text: str) -> None:
    small = trim(PAIRS[style], ["my card"], min_count=1).tokenizer_json
    assert unknown_share(small, [text]) == 0
    cut, full = Tokenizer.from_str(small), Tokenizer.from_str(PAIRS[style])
    for tokenizer in (cut, full):
        tokenizer.decoder = (
            decoders.ByteLevel()
            if style == "bytes"
            else decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        )
    assert cut.decode(cut.encode(text).ids) == full.decode(full.encode(text).ids)


def unigram_file(style: str, learned: list[list[Any]]) -> str:
    """A tokenizer file laid out as XLM-R's, as CamemBERT's, or with pieces for bytes at the end.

    CamemBERT's list has ``<unk>`` twice; its ``<mask>``, and that after the bytes, are not in it.
    """
    pieces: list[list[Any]]
    if style == "camembert":
        pieces = [[s, 0.0] for s in ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>")]
        pieces += [[s, 0.0] for s in ("<unk>", "<s>", "</s>")] + learned
        added = {"<s>NOTUSED": 0, "<pad>": 1, "</s>NOTUSED": 2, "<unk>": 4, "<s>": 5, "</s>": 6}
    elif style == "xlm-r":
        pieces = [[s, 0.0] for s in ("<s>", "<pad>", "</s>", "<unk>")] + learned
        added = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    else:
        pieces = [[s, 0.0] for s in ("<s>", "<pad>", "</s>")] + learned + [["<unk>", 0.0]]
        added = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": len(pieces) - 1}
        pieces += [[f"<0x{byte:02X}>", -50.0] for byte in range(256)]
    added["<mask>"] = len(pieces)
    if style == "xlm-r":
        pieces.append(["<mask>", 0.0])
    file = json.loads(Tokenizer(models.Unigram()).to_str())
    return json.dumps(file | {
        "added_tokens": [
            {"id": at, "content": s, "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False} for s, at in added.items()],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581",
                          "prepend_scheme": "always", "split": True},
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", added["</s>"]],
                           "cls": ["<s>", added["<s>"]], "trim_offsets": True,
                           "add_prefix_space": True},
        "model": {"type": "Unigram", "vocab": pieces, "unk_id": pieces.index(["<unk>", 0.0]),
                  "byte_fallback": style == "bytes"},
    })  # fmt: skip


README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
LINES = [line for line in README.splitlines() if line.strip()][:60]


def learned_pieces() -> list[list[Any]]:
    """What the library's trainer makes of `README`."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=800, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(README.splitlines(), trainer)
    return list(json.loads(tokenizer.to_str())["model"]["vocab"][1:])


LEARNED = learned_pieces()
UNIGRAMS = {style: unigram_file(style, LEARNED) for style in ("xlm-r", "camembert", "bytes")}


def require_same_splits(before: str, some: set[str], texts: Iterable[str]) -> None:
    """Texts whose pieces all stay, `some` among them, are split as before."""
    small = trim(before, some, min_count=1)
    full, cut = Tokenizer.from_str(before), Tokenizer.from_str(small.tokenizer_json)
    for text in {*texts, *some}:
        old, new = full.encode(text), cut.encode(text)
        stays = set(small.kept_ids).issuperset(old.ids)
        assert stays or text not in some
        if stays:
            assert new.tokens == old.tokens
            assert [small.kept_ids[i] for i in new.ids] == old.ids


@pytest.mark.parametrize("style", UNIGRAMS)
@given(st.sets(st.sampled_from(LINES), min_size=1, max_size=20))
def test_texts_of_kept_unigrams_are_split_as_before(style: str, some: set[str]) -> None:
    require_same_splits(UNIGRAMS[style], some, [*LINES, "a <mask> \u2603 b"])


SHORT = ["".join(letters) for n in (1, 2, 3) for letters in product("abz", repeat=n)]


@given(
    st.dictionaries(st.sampled_from(SHORT), st.integers(-12, -1), min_size=1),
    st.sets(st.text("abz", max_size=8), max_size=3),
    st.lists(st.text("abz", max_size=8), max_size=20),
)
def test_equal_scores_and_unknown_characters_split_as_before(
    scores: dict[str, int], some: set[str], texts: list[str]
) -> None:
    learned = [["\u2581", -2.0], *([piece, float(score)] for piece, score in scores.items())]
    require_same_splits(unigram_file("xlm-r", learned), some, texts)


@pytest.mark.parametrize("style", UNIGRAMS)
@given(
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("cardwithl "), max_size=9)
)
def test_any_text_stays_readable_in_unigrams(style: str, text: str) -> None:
    small = trim(UNIGRAMS[style], ["my card"], min_count=1).tokenizer_json

    def read(file: str) -> tuple[str, list[str]]:
        encoding = Tokenizer.from_str(file).encode(text, add_special_tokens=False)
        unread = [p for p, at in zip(encoding.tokens, encoding.ids, strict=True)
                  if at == unknown_id(file)]  # fmt: skip
        return "".join(encoding.tokens), unread

    assert read(small) == read(UNIGRAMS[style])


@pytest.mark.parametrize("style", UNIGRAMS)
def test_unigrams_go_and_what_stays_is_as_it_was(style: str) -> None:
    text = "the model <mask> \u2603"
    small = trim(UNIGRAMS[style], [text], min_count=1)
    before, after = (
        json.loads(file)["model"]["vocab"] for file in (UNIGRAMS[style], small.tokenizer_json)
    )
    assert after == [before[old] for old in small.kept_ids if old < len(before)]
    old, new = Tokenizer.from_str(UNIGRAMS[style]), Tokenizer.from_str(small.tokenizer_json)
    needed = {*old.encode(text).tokens, min(before, key=lambda entry: entry[1])[0]}
    gone = {piece for piece, _ in LEARNED if len(piece) > 1} - needed
    assert dict(before).keys() - dict(after).keys() == gone
    assert len(gone) > 200

    ids = new.encode(text).ids
    assert [small.kept_ids[i] for i in ids] == old.encode(text).ids
    assert [new.id_to_token(i) for i in (ids[0], ids[-1])] == ["<s>", "</s>"]
    assert new.token_to_id("<mask>") in ids
    assert small.kept_ids[1] == 1  # the padding piece, from which RoBERTa-like models count


def test_the_least_likely_piece_sets_the_price_of_the_unknown() -> None:
    learned = [["\u2581", -1.0], ["a", -20.0], ["b", -20.0], ["za", -20.0], ["ab", -1.0]]
    before = unigram_file("xlm-r", [*learned, ["bbb", -100.0]])
    assert Tokenizer.from_str(before).encode("zab").tokens == ["<s>", "\u2581", "za", "b", "</s>"]
    require_same_splits(before, {"zab", "ab"}, [])  # not as an unknown "z" and "ab"


def test_what_characters_cannot_spell_stays() -> None:
    learned = [["\u2581", -1.0], ["a", -1.0], ["aa", -1.0], ["az", -1.0]]
    small = trim(unigram_file("xlm-r", learned), ["a"], min_count=1).tokenizer_json
    assert Tokenizer.from_str(small).encode("aaz").tokens == ["<s>", "\u2581", "a", "az", "</s>"]


@pytest.mark.parametrize("before", [spec(), UNIGRAMS["xlm-r"]], ids=["WordPiece", "Unigram"])
def test_the_unknown_piece_stays_though_no_list_of_specials_has_it(before: str) -> None:
    bare = json.loads(before) | {"added_tokens": [], "post_processor": None}
    small = trim(json.dumps(bare), ["my card"], min_count=1)
    assert unknown_id(before) in small.kept_ids
    assert unknown_share(small.tokenizer_json, ["\u2603"]) > 0


def test_the_unknown_piece_may_be_any_and_have_the_first_id() -> None:
    first = Tokenizer(models.WordLevel({"[UNK]": 0, "card": 1}, unk_token="[UNK]"))
    first.pre_tokenizer = pre_tokenizers.Whitespace()
    assert unknown_id(first.to_str()) == 0
    assert unknown_share(first.to_str(), ["my card"]) == pytest.approx(0.5)
    assert unknown_id(PAIRS["bytes"]) is None
    for style, share in (("xlm-r", 1 / 2), ("camembert", 1 / 2), ("bytes", 0)):
        small = trim(UNIGRAMS[style], ["my card"], min_count=1)
        old = unknown_id(UNIGRAMS[style])
        assert old is not None
        assert unknown_id(small.tokenizer_json) == small.kept_ids.index(old)
        assert unknown_share(small.tokenizer_json, ["\u2603 \u2603"]) == pytest.approx(share)


def test_other_tokenizers_are_refused_with_a_way_out() -> None:
    other = json.loads(spec())
    marked = {"type": "BPE", "vocab": {}, "merges": [], "end_of_word_suffix": "</w>"}
    for model in (marked, {"type": "WordLevel", "vocab": {}, "unk_token": "[UNK]"}):
        other["model"] = model
        with pytest.raises(
            ParamsError, match=rf"vocabulary\.trim.*{model['type']}.*\n.*trim=false"
        ):
            trim(json.dumps(other), ["a"], min_count=1)
