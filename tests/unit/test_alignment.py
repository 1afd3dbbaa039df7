"""Two tokenizers that cut a text differently meet in its words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tasks.training.alignment import FIRST, NO_WORD, align, pool, pool_attention, word_ids

CORPUS = [
    "I lost my card, and I don't know what to do!",
    "The café's top-up of €5.50 didn't arrive...",
    "Why was my transfer declined? It's been 3 days already.",
    "Please cancel the transaction from yesterday, thank you.",
]


def wordpiece(size: int = 110) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=specials)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def byte_pairs(*, trim_offsets: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim_offsets, add_prefix_space=False
    )
    return tokenizer


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    return wordpiece()


@pytest.fixture(scope="module", params=[False, True], ids=["with-spaces", "trimmed"])
def pairs(request: pytest.FixtureRequest) -> Tokenizer:
    return byte_pairs(trim_offsets=request.param)


def spelled(text: str, tokenizer: Tokenizer) -> dict[int, str]:
    """What the pieces of each word cover, put together."""
    encoding = tokenizer.encode(text)
    covered: dict[int, set[int]] = {}
    for word, (start, end) in zip(word_ids(text, encoding), encoding.offsets, strict=True):
        if word > FIRST:
            covered.setdefault(word, set()).update(range(start, end))
    return {w: "".join(text[i] for i in sorted(at)).strip() for w, at in covered.items()}


def test_words_by_hand(pieces: Tokenizer) -> None:
    text = "I don't know (3.50)"
    found = spelled(text, pieces)
    assert found == {1: "I", 2: "don't", 3: "know", 4: "(", 5: "3", 6: ".", 7: "50", 8: ")"}
    words = word_ids(text, pieces.encode(text))
    assert words[0] == FIRST
    assert words[-1] == NO_WORD
    assert words.count(2) >= 3  # don, ', t


@pytest.mark.parametrize(
    "text",
    [
        *CORPUS,
        "  LOST   my\tcards\n",
        "Cafe\u0301 déclined?! It’s 'here'.",  # an accent of its own, a typographic apostrophe
        "top\u00adup arrive\u200bd",  # invisible characters that BERT's normaliser drops
        "my 卡片 declined",
    ],
)
def test_two_tokenizers_find_the_same_words(text: str, pieces: Tokenizer, pairs: Tokenizer) -> None:
    one, other = spelled(text, pieces), spelled(text, pairs)
    assert pieces.encode(text).tokens != pairs.encode(text).tokens
    assert one.keys() == other.keys()
    assert list(one) == list(range(1, len(one) + 1))

    def bare(word: str) -> str:
        return "".join(c for c in word if c not in "\u0301\u00ad\u200b")

    assert {w: bare(s) for w, s in one.items()} == {w: bare(s) for w, s in other.items()}
    assert "".join(map(bare, one.values())) == bare("".join(text.split()))


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="abet ncard'’.,!é\u0301-_5卡ß\n", max_size=40))
def test_a_word_is_whole_or_absent_and_never_holds_another(text: str) -> None:
    found = [spelled(text, tokenizer) for tokenizer in TOKENIZERS]
    for words in found:
        assert all(not any(c.isspace() for c in word) for word in words.values())
    shared = found[0].keys() & found[1].keys()
    for word in shared:
        one, other = (words[word].replace("\u0301", "") for words in found)
        assert one == other


TOKENIZERS = [wordpiece(), byte_pairs()]


def test_an_unknown_word_is_still_a_word(pieces: Tokenizer) -> None:
    text = "card ∂∂∂ card"
    assert "[UNK]" in pieces.encode(text).tokens
    assert spelled(text, pieces) == {1: "card", 2: "∂∂∂", 3: "card"}


@pytest.mark.parametrize("length", range(3, 16))
def test_truncation_takes_whole_words(pieces: Tokenizer, pairs: Tokenizer, length: int) -> None:
    text = CORPUS[1]
    for tokenizer in (pieces, pairs):
        whole = spelled(text, tokenizer)
        tokenizer.enable_truncation(length)
        cut = spelled(text, tokenizer)
        tokenizer.no_truncation()
        assert cut.items() <= whole.items()
        assert list(cut) == list(range(1, len(cut) + 1))


def test_a_piece_over_two_words_spoils_both() -> None:
    tokenizer = Tokenizer(models.BPE(
        {"a": 0, "b": 1, ".": 2, "b.": 3}, [("b", "."), ]
    ))  # fmt: skip
    encoding = tokenizer.encode("ab.")
    assert encoding.tokens == ["a", "b."]
    assert word_ids("ab.", encoding) == [NO_WORD, NO_WORD]


def test_padding_has_no_word(pieces: Tokenizer) -> None:
    text = "card"
    plain = word_ids(text, pieces.encode(text))
    encoding = pieces.encode(text)
    encoding.pad(len(encoding) + 3)
    assert word_ids(text, encoding) == plain + [NO_WORD] * 3


def test_offsets_are_demanded(pieces: Tokenizer) -> None:
    fast = pieces.encode_batch_fast(["lost card"])[0]
    with pytest.raises(ValueError, match="encode_batch"):
        word_ids("lost card", fast)
    assert word_ids("", pieces.encode("")) == [FIRST, NO_WORD]
    assert word_ids("  ", pieces.encode("  ")) == [FIRST, NO_WORD]


def test_shared_words_by_hand() -> None:
    student = torch.tensor([[0, 1, 1, 3, -1], [0, 1, 2, -1, -1]])
    teacher = torch.tensor([[0, 1, 2, 3, 4, 4], [0, 2, -1, -1, -1, -1]])
    expected = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0]]).bool()
    assert torch.equal(align(student, teacher), expected)
    nothing = torch.full((2, 3), NO_WORD)
    assert torch.equal(align(nothing, teacher), torch.zeros(2, 1).bool())


def test_states_are_averaged_over_a_words_pieces() -> None:
    states = torch.arange(12.0).reshape(1, 6, 2)
    words = torch.tensor([[0, 1, 1, 3, -1, 4]])
    expected = torch.tensor([[[0.0, 1.0], [3.0, 4.0], [0.0, 0.0], [6.0, 7.0]]])
    assert torch.equal(pool(states, words, 4), expected)  # word 2 has no piece, word 4 is beyond


def test_attention_is_summed_over_keys_and_averaged_over_queries() -> None:
    words = torch.tensor([[0, 1, 1, -1]])
    maps = torch.tensor(
        [[[[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.0, 0.5, 0.1, 0.4], [1.0, 0, 0, 0]]]]
    )
    expected = torch.tensor([[[[0.1, 0.5], [0.2, (0.5 + 0.6) / 2]]]])
    torch.testing.assert_close(pool_attention(maps, words, 2), expected)


@settings(max_examples=30, deadline=None)
@given(
    words=st.lists(st.lists(st.integers(-1, 5), min_size=7, max_size=7), min_size=1, max_size=4),
    count=st.integers(1, 7),
)
def test_pooling_against_loops(words: list[list[int]], count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(len(words), 7, 3, generator=generator)
    maps = torch.rand(len(words), 2, 7, 7, generator=generator)
    vectors = torch.zeros(len(words), count, 3)
    attention = torch.zeros(len(words), 2, count, count)
    for row, of in enumerate(words):
        for w in range(count):
            queries = [i for i, word in enumerate(of) if word == w]
            if queries:
                vectors[row, w] = states[row, queries].mean(0)
            for v in range(count):
                for i in queries:
                    for j in (j for j, word in enumerate(of) if word == v):
                        attention[row, :, w, v] += maps[row, :, i, j] / len(queries)
    index = torch.tensor(words)
    torch.testing.assert_close(pool(states, index, count), vectors)
    torch.testing.assert_close(pool_attention(maps, index, count), attention)
