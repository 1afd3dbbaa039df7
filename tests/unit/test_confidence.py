"""One temperature, fitted on texts the model has not seen, folded into its last projection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation import linear
from tasks.evaluation.quality import quality
from tasks.modeling.checkpoint import clone
from tasks.quantization.confidence import fit_temperature, fold_temperature
from tests.tiny_models import KINDS, PIECES, tiny


def drawn(scale: float, rows: int = 4000, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logits), and the logits times `scale`."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(rows, classes)) * 2
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (chances.cumsum(1) > generator.random((rows, 1))).argmax(1)
    return logits * scale, labels


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_the_scale_that_was_put_in_is_found(scale: float) -> None:
    logits, labels = drawn(scale)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(scale, rel=0.05)
    before, after = (quality(np.float32(x), labels) for x in (logits, logits / temperature))
    assert after["ece"] < 0.03
    assert after["nll"] <= before["nll"] + 1e-6
    assert after["accuracy"] == before["accuracy"]


@given(st.floats(0.1, 10.0))
def test_it_is_the_minimum(scale: float) -> None:
    logits, labels = drawn(scale, rows=200)
    best = fit_temperature(logits, labels)
    losses = [quality(np.float32(logits / (best * f)), labels)["nll"] for f in (0.9, 1.0, 1.1)]
    assert losses[1] <= min(losses) + 1e-5


def test_two_classes_by_hand() -> None:
    """Logits (1, 0), right three times in four: the odds must be 3, so the scale is ln 3."""
    logits, labels = np.array([[1.0, 0.0]] * 4), np.array([0, 0, 0, 1])
    assert fit_temperature(logits, labels) == pytest.approx(1 / np.log(3), rel=1e-4)


@pytest.mark.parametrize("fit", [fit_temperature, linear._temperature])
@pytest.mark.parametrize("right", [True, False])
def test_texts_that_are_all_right_or_all_wrong_say_nothing_of_others(fit, right: bool) -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.5]])
    labels = logits.argmax(1) if right else logits.argmin(1)
    assert fit(logits, labels) == (
        1.0 if right or fit is fit_temperature else pytest.approx(np.exp(5), rel=0.01)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_folded_into_every_architecture(kind: str) -> None:
    model = tiny(kind)
    ids = torch.randint(5, PIECES, (3, 7), generator=torch.Generator().manual_seed(0))
    scaled = clone(model)
    fold_temperature(scaled, 2.5)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits / 2.5
        found = scaled(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
