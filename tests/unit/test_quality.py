"""Quality against hand-computed values and scikit-learn."""

import math
import socket
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score

from tasks.evaluation import hubless
from tasks.evaluation import quality as q


def test_ece_by_hand():
    # softmax of (0, log 3) is (0.25, 0.75): confidences 0.75, 0.75 in one bin, one of them right;
    # softmax of (0, log 19) is 0.95, right: |1 - 1.5| / 3 + |1 - 0.95| / 3
    logits = np.array([[0, math.log(3)], [0, math.log(3)], [0, math.log(19)]])
    assert q.ece(logits, np.array([1, 0, 1])) == pytest.approx((0.5 + 0.05) / 3)


def test_ece_bins_are_closed_on_the_right_and_there_are_fifteen():
    assert q.ECE_BINS == 15
    # 0.6 = 9/15 ends bin 9, 0.61 begins the next: were they one bin, right and wrong would cancel
    logits = np.log(np.array([[0.4, 0.6 - 1e-9], [0.39, 0.61]]))
    assert q.ece(logits, np.array([1, 0])) == pytest.approx((0.4 + 0.61) / 2, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float64, (12, 4), elements=st.floats(-30, 30, width=32)),
    hnp.arrays(np.int64, (12,), elements=st.integers(0, 3)),
)
def test_formulas_agree_with_sklearn(logits, labels):
    predictions = logits.argmax(axis=1)
    assert q.accuracy(logits, labels) == pytest.approx(accuracy_score(labels, predictions))
    expected = f1_score(labels, predictions, average="macro", zero_division=0)
    assert q.macro_f1(logits, labels) == pytest.approx(expected)
    probabilities = np.exp(q.log_softmax(logits))
    assert probabilities.sum(axis=1) == pytest.approx(1.0)
    # sklearn clips at 1e-16, which is 36.7 nats
    if probabilities[np.arange(12), labels].min() > 1e-12:
        expected = log_loss(labels, probabilities, labels=range(4))
        assert q.nll(logits, labels) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert 0 <= q.ece(logits, labels) <= 1


def test_per_class_recall_is_nan_where_a_class_is_absent():
    labels, predictions = np.array([0, 0, 1, 3]), np.array([0, 1, 1, 2])
    found = q.per_class_recall(predictions, labels, 5)
    expected = recall_score(labels, predictions, labels=[0, 1, 3], average=None, zero_division=0)
    assert found[[0, 1, 3]] == pytest.approx(expected)
    assert np.isnan(found[[2, 4]]).all()


def test_a_row_with_what_is_no_number_is_right_in_no_class():
    logits = np.array([[np.nan, 0.0], [3.0, 0.0], [0.0, np.inf], [0.0, 2.0]])
    labels = np.array([0, 0, 1, 1])
    assert q.answered(logits).tolist() == [-1, 0, -1, 1]
    assert q.accuracy(logits, labels) == 0.5
    # of each class one of two was found, and nothing else was called by its name
    assert q.macro_f1(logits, labels) == pytest.approx(2 / 3)


def test_metrics_say_direction_and_rows():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 7)).astype(np.float32), rng.integers(0, 7, 50)
    found = q.metrics(logits, labels)
    assert [metric.name for metric in found] == ["accuracy", "macro_f1", "nll", "ece"]
    assert [metric.direction for metric in found] == ["higher", "higher", "lower", "lower"]
    assert {metric.n for metric in found} == {50}
    assert q.quality(logits, labels) == {metric.name: metric.value for metric in found}


def test_evaluate_gives_the_same_without_hub_or_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("looked for a network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    rng = np.random.default_rng(0)
    for rows in (50, 1, 7):  # a metric that was used once starts anew
        logits, labels = rng.normal(size=(rows, 7)).astype(np.float32), rng.integers(0, 7, rows)
        assert hubless.quality(logits, labels) == q.quality(logits, labels)
    recall = hubless.PerClassRecall(keep_in_memory=True, seed=0)
    found = recall.compute(predictions=logits, references=labels)["recall"]
    expected = q.per_class_recall(logits.argmax(axis=1), labels, 7)
    assert np.array_equal(found, expected, equal_nan=True)


def test_evaluate_leaves_numpys_generator_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    hubless.quality(np.eye(3), np.arange(3))
    assert (np.random.get_state()[1] == before).all()


def test_quality_is_imported_without_evaluate():
    code = "import sys, tasks.evaluation.quality; print({'evaluate', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((0, 3)), np.zeros(0, int)),
        (np.zeros((2, 3)), np.zeros(3, int)),
        (np.zeros((2, 3)), np.array([0, 3])),
        (np.zeros((2, 3)), np.array([0, -1])),
    ],
)
def test_what_cannot_be_judged_is_refused(logits, labels):
    for quality in (q.quality, hubless.quality):
        with pytest.raises(ValueError, match="expected"):
            quality(logits, labels)
