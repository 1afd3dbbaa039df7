"""A trimmed tokenizer spells the same texts with fewer pieces in its table."""

from __future__ import annotations

import json

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
from tasks.modeling.vocabulary import plain_tokenizer, trim, unknown_share

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


def test_other_tokenizers_are_refused_with_a_way_out() -> None:
    other = json.loads(spec())
    marked = {"type": "BPE", "vocab": {}, "merges": [], "end_of_word_suffix": "</w>"}
    for model in (marked, {"type": "Unigram", "vocab": []}):
        other["model"] = model
        with pytest.raises(
            ParamsError, match=rf"vocabulary\.trim.*{model['type']}.*\n.*trim=false"
        ):
            trim(json.dumps(other), ["a"], min_count=1)
