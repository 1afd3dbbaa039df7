"""The linear model against scikit-learn's own pipeline."""

import subprocess
import sys

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.svm import LinearSVC

from tasks.errors import IntegrityError, UnavailableError
from tasks.evaluation import linear
from tasks.evaluation.linear import LinearModel

WORDS = {
    "lost": ["my card is lost", "card stolen yesterday", "i lost the card", "somebody stole it"],
    "rate": ["what is the exchange rate", "rate for euros", "exchange fee", "which rate applies"],
    "pin": ["change my pin", "i forgot the pin code", "new pin please", "pin is blocked"],
}
NAMES = list(WORDS)
TEXTS = [text for texts in WORDS.values() for text in texts]
LABELS = np.repeat(np.arange(3), 4)


@pytest.fixture(scope="module")
def model() -> LinearModel:
    return LinearModel.fit(TEXTS, LABELS, NAMES, seed=0)


def test_margins_are_those_of_a_sklearn_pipeline(model):
    union = FeatureUnion(
        [
            ("words", TfidfVectorizer(**linear.WORDS, sublinear_tf=True)),
            ("characters", TfidfVectorizer(**linear.CHARACTERS, sublinear_tf=True)),
        ]
    )
    svc = LinearSVC(C=linear.PENALTY, random_state=0)
    pipeline = make_pipeline(union, svc).fit(TEXTS, LABELS)
    asked = ["where is my card", "exchange euros", "pin?", "", "äöü"]
    assert model.logits(asked) == pytest.approx(pipeline.decision_function(asked), abs=1e-3)
    assert model.predict(asked) == [NAMES[i] for i in pipeline.predict(asked)]
    assert model.parameters == svc.coef_.size + 3


def test_temperature_fits_nll_and_moves_no_label(model):
    rng = np.random.default_rng(0)
    truth = LABELS.copy()
    truth[rng.integers(0, 12, 3)] = 0
    fitted = LinearModel.fit(TEXTS, LABELS, NAMES, seed=0, validation=(TEXTS, truth))
    assert fitted.predict(TEXTS) == model.predict(TEXTS)
    assert fitted.logits(TEXTS) == pytest.approx(model.logits(TEXTS) / fitted.temperature, rel=1e-4)

    def nll(temperature: float) -> float:
        scaled = model.logits(TEXTS) / temperature
        return float((np.log(np.exp(scaled).sum(1)) - scaled[np.arange(12), truth]).mean())

    around = [fitted.temperature * factor for factor in (0.9, 1.0, 1.1)]
    assert min(around, key=nll) == around[1]


def test_save_and_load_answer_alike(model, tmp_path):
    path = tmp_path / "deep" / "linear.joblib"
    size = model.save(path)
    assert size == path.stat().st_size > 4 * model.parameters
    again = LinearModel.load(path)
    assert (again.logits(TEXTS) == model.logits(TEXTS)).all()
    words = tmp_path / "words"
    words.write_text("my lost card")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tasks.evaluation.answer_once",
            "linear",
            str(path),
            str(words),
            "64",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "lost\n"


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(UnavailableError, match="no such file"):
        LinearModel.load(tmp_path / "none.joblib")
    joblib.dump({"a": 1}, tmp_path / "other.joblib")
    with pytest.raises(IntegrityError, match="found dict"):
        LinearModel.load(tmp_path / "other.joblib")


def test_classes_that_training_lacks_have_logits_and_never_win():
    names = ["a", "lost", "b", "pin", "c"]
    labels = np.repeat([1, 3], 4)
    texts = WORDS["lost"] + WORDS["pin"]
    model = LinearModel.fit(texts, labels, names, seed=0)
    assert model.logits(texts).shape == (8, 5)
    assert model.predict(texts) == ["lost"] * 4 + ["pin"] * 4


def test_the_same_seed_gives_the_same_model(model):
    again = LinearModel.fit(TEXTS, LABELS, NAMES, seed=0)
    assert (again.logits(TEXTS) == model.logits(TEXTS)).all()


def test_flops_count_the_nonzero_features(model):
    # "pin": one word, and of " pin " four 2-grams, three 3-grams, two 4-grams, all in training
    assert model.flops(["pin"]) == 2 * (1 + 4 + 3 + 2) * 3
    assert model.flops(["pin", ""]) == (1 + 4 + 3 + 2) * 3


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=4))
def test_any_text_gets_a_label(texts):
    model = _CACHE.setdefault("model", LinearModel.fit(TEXTS, LABELS, NAMES, seed=0))
    assert np.isfinite(model.logits(texts)).all()
    assert set(model.predict(texts)) <= set(NAMES)


_CACHE: dict[str, LinearModel] = {}
