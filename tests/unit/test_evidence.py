"""What validate finds out beyond quality: by hand, and against independent implementations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tasks.errors import DataError
from tasks.evaluation import behaviour, comparison, perturbations
from tasks.evaluation.energy import Energy
from tasks.evaluation.evidence import groups, texts_of_lengths
from tasks.evaluation.evidence_markdown import SECTIONS, sections
from tasks.evaluation.latency import engine_ratio, grid
from tasks.evaluation.payback import payback, stage_energy
from tasks.evaluation.quality import ece
from tasks.evaluation.statistics import ClassDrop, ClassDrops
from tasks.evaluation.swaps import Swaps, read_swaps
from tasks.release.servable import Servable
from tests.tiny_bundle import make_bundle

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = np.random.default_rng(5)
WORDS = st.lists(st.text("abcdefghij", min_size=1, max_size=9), min_size=1, max_size=12)


def logits_for(answers: Sequence[int], classes: int = 3, sure: float = 4.0) -> np.ndarray:
    return sure * np.eye(classes)[list(answers)]


def test_mcnemar_is_the_binomial_tail() -> None:
    teacher = np.array([True] * 9 + [False] * 3 + [True] * 20)
    candidate = np.array([False] * 9 + [True] * 3 + [True] * 20)
    found = comparison.mcnemar(teacher, candidate)
    assert (found["teacher_only"], found["candidate_only"]) == (9, 3)
    assert found["p_value"] == pytest.approx(2 * binom.cdf(3, 12, 0.5))
    assert comparison.mcnemar(teacher, teacher)["p_value"] == 1.0


def test_flips_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1])
    teacher, candidate = np.array([0, 1, 1, 0, 1]), np.array([1, 0, 2, 0, 1])
    found = comparison.flips(teacher, candidate, labels)
    assert found == {"rate": 0.6, "helped": 0.2, "hurt": 0.2, "both_wrong": 0.2}


def test_reliability_bins_give_the_calibration_error() -> None:
    logits, labels = GENERATOR.normal(size=(500, 4)) * 2, GENERATOR.integers(0, 4, 500)
    rows = comparison.reliability(logits, labels, bins=15)
    assert sum(row["n"] for row in rows) == 500
    gap = sum(row["n"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / 500
    assert gap == pytest.approx(ece(logits, labels), abs=1e-9)


def test_classes_and_confusions_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    teacher, candidate = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 2, 2])
    judged = ClassDrops(40.0, (ClassDrop(1, 3, 33.3, 35.0, 2.0),))
    first, second = comparison.class_table(teacher, candidate, labels, ["a", "b", "c"], judged)
    assert (first["teacher_recall"], first["candidate_recall"], first["lower"]) == (1.0, 0.5, None)
    assert (second["n"], second["lower"]) == (3, 2.0)
    changes = comparison.confusion_changes(teacher, candidate, labels, ["a", "b", "c"])
    assert changes == [
        {"label": "a", "answered": "b", "teacher": 0, "candidate": 1},
        {"label": "b", "answered": "c", "teacher": 1, "candidate": 2},
    ]


@given(WORDS, st.integers(0, 99))
def test_perturbations_keep_what_they_promise(words: list[str], seed: int) -> None:
    text = " ".join(words)
    made = {name: perturbations.perturbed([text, text], p, seed)
            for name, p in perturbations.PERTURBATIONS.items()}  # fmt: skip
    assert made == {name: perturbations.perturbed([text, text], p, seed)
                    for name, p in perturbations.PERTURBATIONS.items()}  # fmt: skip
    typed = made["typing errors"][0].split(" ")
    assert len(typed) == len(words)
    for word, other in zip(words, typed, strict=True):
        assert abs(len(word) - len(other)) <= 1
        assert word == other or len(word) >= 4
        assert word[0] == other[0]
    assert made["capitals"][0] == text.upper()
    left = made["words left out"][0].split()
    assert left
    assert set(left) <= set(words)
    assert made["first half only"][0].split() == words[: (len(words) + 1) // 2]


def test_typing_errors_happen() -> None:
    text = "transfer pending exchange delivery " * 50
    (made,) = perturbations.perturbed([text], perturbations.typos, 0)
    changed = [a != b for a, b in zip(text.split(), made.split(), strict=True)]
    assert 0.1 < np.mean(changed) < 0.4


def test_robustness_compares_with_clean_texts() -> None:
    def shouts(texts: Sequence[str]) -> np.ndarray:
        return logits_for([int(text.isupper()) for text in texts])

    def deaf(texts: Sequence[str]) -> np.ndarray:
        return logits_for([0] * len(texts))

    texts, labels = ["where is my card"] * 4, np.zeros(4, int)
    clean = (np.zeros(4, int), np.zeros(4, int))
    rows = behaviour.robustness(deaf, shouts, texts, labels, clean, seed=0)
    capitals = next(row for row in rows if row["name"] == "capitals")
    assert (capitals["teacher_drop"], capitals["candidate_drop"]) == (0.0, 100.0)
    assert capitals["flip_rate"] == 1.0


def test_auroc_counts_pairs() -> None:
    inside = np.array([[3.0, 0], [1.0, 0]])
    outside = np.array([[2.0, 0], [0.5, 0]])
    found = behaviour.out_of_distribution({"deploy": inside}, {"deploy": outside}, "there")
    assert found["auroc"] == {"deploy": 0.75}, "of four pairs, one is the wrong way round"


def test_slices_by_hand() -> None:
    right = np.arange(80) % 4 != 0
    worse = right & (np.arange(80) < 60)
    groups = {"half": ["a"] * 40 + ["b"] * 40, "few": ["x"] * 79 + ["y"]}
    rows, few = behaviour.slices(groups, right, worse, seed=0)
    assert [(row["slice"], row["value"]) for row in rows] == [
        ("half", "a"), ("half", "b"), ("few", "x")]  # fmt: skip
    assert rows[0]["gap"] == pytest.approx(100 * (0.75 - worse.mean()))
    assert rows[1]["teacher_gap"] == pytest.approx(0.0)
    assert rows[1]["low"] > 0
    assert rows[1]["p_value"] == pytest.approx(3 * 2 / 2**15), "of 15 lost and none won, times 3"
    assert rows[0]["p_value"] == 1.0
    assert few == [{"slice": "few", "value": "y", "n": 1}]
    assert behaviour.length_terciles(["a", "a b", "a b c"]) == ["short", "medium", "long"]


def test_a_column_called_length_stands_beside_the_texts_own() -> None:
    texts, column = ["a", "a b", "a b c"], ["1 m", "2 m", "1 m"]
    thirds = ["short", "medium", "long"]
    assert groups(texts, {"shop": column}) == {"length": thirds, "shop": column}
    assert groups(texts, {"length": column}) == {"length in words": thirds, "length": column}


def test_of_a_column_with_a_value_for_each_text_the_first_are_named() -> None:
    right = np.ones(100, bool)
    rows, few = behaviour.slices({"id": [f"{i:02}" for i in range(99)] + ["00"]}, right, right,
                                 seed=0)  # fmt: skip
    assert rows == []
    assert few[0] == {"slice": "id", "value": "00", "n": 2}
    assert few[-1] == {"slice": "id", "value": "79 more values", "n": 79}
    assert len(few) == behaviour.NAMED + 1


def test_logits_that_are_no_numbers_tell_nothing_apart() -> None:
    inside, outside = np.array([[3.0, 0], [np.nan, 0]]), np.array([[2.0, 0]])
    assert behaviour.out_of_distribution({"deploy": inside}, {"deploy": outside}, "x") is None


def test_texts_of_a_length_have_it_in_any_script() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.enable_truncation(16)
    for texts in (["我的卡在哪里"], ["where is my card", "lost"]):
        made = texts_of_lengths(tokenizer, texts, [8, 16], 3)
        tokenizer.no_truncation()
        assert [len(tokenizer.encode(t).ids) for t in made[8]] == [8] * 3
        assert [len(tokenizer.encode(t).ids) for t in made[16]] == [16] * 3
    assert texts_of_lengths(tokenizer, [" "], [8], 3) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pairs: [[mother in law, she]]", "is not one word"),
        ("pairs: [[he, she], [He, they]]", "stands there twice"),
        ("pairs: [he, she", "expected ',' or ']'"),
        ("pairs: [[he, she, it]]", "pairs.0"),
        ("prefixes: {names: []}", "prefixes.names"),
        ("pears: [[he, she]]", "pears: Extra inputs"),
        ("[he, she]", "all of it"),
    ],
)
def test_a_list_of_swaps_that_says_something_else_is_refused(
    text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "swaps.yaml").write_text(text, "utf-8")
    with pytest.raises(DataError, match=r"evaluation\.counterfactual: found") as caught:
        read_swaps(tmp_path / "swaps.yaml")
    assert said in caught.value.message


def test_the_projects_own_list_of_swaps_is_read() -> None:
    swaps = read_swaps(ROOT / "infra" / "counterfactual.yaml")
    assert ("he", "she") in swaps.pairs
    assert {"age"} < set(swaps.prefixes)
    assert "Greek" in swaps.scripts


def test_long_texts_are_asked_about_first_last_and_not_at_all() -> None:
    limit = 6

    def reads_the_beginning(texts: Sequence[str]) -> np.ndarray:
        words = [text.split()[:limit] for text in texts]
        return logits_for([1 if "card" in w else 2 if "loan" in w else 0 for w in words])

    def shrugs(texts: Sequence[str]) -> np.ndarray:
        return logits_for([0] * len(texts), sure=0.0)

    texts, labels = ["a card", "a loan"], np.array([1, 2])
    posts = ["so it is with all of them"]
    found = behaviour.long_texts(
        reads_the_beginning, shrugs, texts, labels, posts,
        pieces=lambda text: len(text.split()), max_length=limit,
    )  # fmt: skip
    assert found["source"] == "data.long_texts"
    assert (found["n"], found["truncated_share"]) == (2, 1.0)
    assert (found["teacher"], found["candidate"]) == (1.0, 0.0)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["asked after it"]["teacher"] == 0.0, "cut off"
    assert rows["asked after it"]["agreement"] == 1.0
    assert rows["not asked"]["teacher"] is None
    assert rows["not asked"]["candidate_confidence"] == pytest.approx(1 / 3)
    own = behaviour.long_texts(
        reads_the_beginning, shrugs, texts, labels, [],
        pieces=lambda text: len(text.split()), max_length=4,
    )  # fmt: skip
    assert own["source"].startswith("test texts")
    assert [row["name"] for row in own["rows"]] == ["asked before it"]
    assert own["truncated_share"] == 0.0, "four of four are read"


def test_swaps() -> None:
    assert behaviour.swapped("She lost his card", {"she": "he", "his": "her"}) == "He lost her card"
    assert behaviour.swapped("my son's,she and Son.", {"son": "daughter", "she": "he"}) == (
        "my daughter's,he and Daughter."
    )

    def hears_names(texts: Sequence[str]) -> np.ndarray:
        return logits_for([int("Mary" in text) for text in texts])

    def deaf(texts: Sequence[str]) -> np.ndarray:
        return logits_for([0] * len(texts))

    swaps = Swaps(pairs=[("he", "she")], prefixes={"names": [("James", "Mary")]})
    found = behaviour.counterfactuals(deaf, hears_names, ["is he there", "my card"], swaps)
    capital = Swaps(pairs=[("He", "She")])
    (row,) = behaviour.counterfactuals(deaf, deaf, ["is he there"], capital)
    assert row["n"] == 1, "a list in capitals is found in small letters"
    assert [row["n"] for row in found] == [1, 2]
    assert [row["candidate_flip_rate"] for row in found] == [0.0, 1.0]


def test_near_duplicates_are_told_from_others() -> None:
    train = [f"where is the card number {i}" for i in range(30)]
    texts = [*train, *(["fully odd phrase"] * 30)]
    logits = np.concatenate([logits_for([0] * 30, sure=9), logits_for([0] * 30, sure=1)])
    found = behaviour.memorisation(train, texts, logits, seed=0)
    assert found is not None
    assert found["pairs"] == 30
    assert found["gap"] > 0.3
    assert found["low"] <= found["gap"] <= found["high"]
    assert behaviour.memorisation(train, texts[:30], logits[:30], seed=0) is None


def test_near_duplicates_are_compared_with_what_is_like_them() -> None:
    """Sure of a whole subject is not sure of what was learned by heart."""
    train = [f"where is the card number {i}" for i in range(30)]
    alike = ["where is a cash machine", "is the card late", "card numbers abroad", "number plate",
             "where to see the fees"] * 6  # fmt: skip
    texts = [*train, *alike, *["fully odd phrase"] * 30]
    logits = np.concatenate([logits_for([0] * 60, sure=9), logits_for([0] * 30, sure=1)])
    found = behaviour.memorisation(train, texts, logits, seed=0)
    assert found is not None
    assert found["pairs"] == 30
    assert found["gap"] == pytest.approx(0, abs=1e-9)
    assert found["confidence_far"] == pytest.approx(found["confidence_near"])


def test_energy_is_earned_back(tmp_path: Path) -> None:
    for stage, kwh in (("distill", 2e-3), ("prune", 1e-3), ("fetch", None)):
        content = {"energy_kwh": kwh, "work_s": 7.0, "energy_method": "estimated"}
        (tmp_path / f"{stage}.runtime.json").write_text(json.dumps(content))
    stages = stage_energy(tmp_path, ["fetch", "distill", "prune", "quantize"])
    assert [stage["stage"] for stage in stages] == ["distill", "prune"]
    teacher, own = Energy(3e-6, 1.0, "estimated"), Energy(1e-6, 1.0, "estimated")
    found = payback(stages, teacher, own)
    assert found["pays_back_after_predictions"] == pytest.approx(3e-3 / 2e-6 * 1000)
    assert found["method"] == "estimated"
    nothing = payback(stages, own, teacher)
    assert nothing["pays_back_after_predictions"] is None
    missing = Energy(None, None, "not measured")
    assert payback([], missing, missing)["method"] == "not measured"


def test_the_grid_has_every_cell_and_the_engine_is_the_smaller_part(tmp_path: Path) -> None:
    servable = Servable(make_bundle(tmp_path / "bundle"))

    def answer(batch: list[str]) -> list[str]:
        return [prediction.label for prediction in servable.predict(batch)]

    texts = ["where is my card?", "what is the rate"]
    rows = grid({"deploy": answer}, {4: texts, 8: texts}, batches=[1, 8], threads=1, calls=4)
    assert [(row["pieces"], row["batch"]) for row in rows] == [(4, 1), (4, 8), (8, 1), (8, 8)]
    found = engine_ratio(servable, texts)
    assert found["ratio"] == pytest.approx(found["text_to_label_p50"] / found["engine_p50"])
    assert found["ratio"] > 1


def test_only_what_was_measured_has_a_section() -> None:
    assert sections({}) == []
    found = sections({"mcnemar": {"teacher_only": 9, "candidate_only": 3, "p_value": 0.146}})
    assert found[0] == "## Who is right where"
    assert "p = 0.146" in found[1]
    assert len({title for title, _, _ in SECTIONS}) == len(SECTIONS)
