"""A masked model, its sliced form, its reloaded form and its exported form are one model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from tasks.errors import IntegrityError, ParamsError
from tasks.modeling.architecture import ARCHITECTURES, architecture_of, layers_of, linear
from tasks.modeling.checkpoint import clone, load_checkpoint, parameters, save_checkpoint
from tasks.modeling.surgery import (
    keep_heads,
    keep_layers,
    keep_neurons,
    keep_positions,
    keep_vocabulary,
    shapes_of,
)
from tasks.pruning.width import LayerPlan, apply
from tasks.quantization.export import check_export, export_onnx

LAYERS, HEADS, FFN, HIDDEN, PIECES, CLASSES = 3, 4, 24, 32, 50, 5
PAD = {"bert": 0, "mpnet": 1}


def tiny(model_type: str) -> torch.nn.Module:
    """A small model of a real architecture, random weights, as the library builds it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=PIECES, hidden_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=FFN, max_position_embeddings=40,
        num_labels=CLASSES, pad_token_id=PAD[model_type], initializer_range=0.2,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():  # biases and norms that are not zero and one, so that mistakes show
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return tiny(request.param)


@pytest.fixture(scope="module")
def cut_twice(model: torch.nn.Module) -> torch.nn.Module:
    first = apply([LayerPlan((0, 2, 3), tuple(range(0, FFN, 2)))] * LAYERS, clone(model))
    return apply([LayerPlan((1, 2), (0, 3, 4))] * LAYERS, first)


def texts(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, PIECES, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = model.config.pad_token_id, 0
    return ids, mask


def answer(model: torch.nn.Module) -> torch.Tensor:
    ids, mask = texts(model)
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).logits


def masked(model: torch.nn.Module, plan: list[LayerPlan]) -> torch.nn.Module:
    """The full model with the outgoing weights of everything that goes set to zero."""
    arch, copy = architecture_of(model), clone(model)
    size = HIDDEN // HEADS
    for layer, cut in zip(layers_of(copy), plan, strict=True):
        for head in set(range(HEADS)) - set(cut.heads):
            linear(layer, arch.attention_output).weight.data[:, head * size : (head + 1) * size] = 0
        gone = sorted(set(range(FFN)) - set(cut.neurons))
        linear(layer, arch.ffn_out).weight.data[:, gone] = 0
    return copy


def subset(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    chosen = st.sets(st.integers(0, size - 1), min_size=1, max_size=size)
    return chosen.map(lambda s: tuple(sorted(s)))


PLANS = st.lists(st.builds(LayerPlan, subset(HEADS), subset(FFN)), min_size=LAYERS, max_size=LAYERS)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plan=PLANS)
def test_masked_sliced_and_reloaded_agree(
    model: torch.nn.Module, tmp_path: Path, plan: list[LayerPlan]
) -> None:
    sliced = apply(plan, clone(model))
    expected = answer(masked(model, plan))
    torch.testing.assert_close(answer(sliced), expected, atol=1e-5, rtol=1e-4)
    (tmp_path / "tokenizer.json").write_text("{}")
    save_checkpoint(sliced, tmp_path / "saved", parent=tmp_path, step={"stage": "prune"})
    reloaded = load_checkpoint(tmp_path / "saved")
    assert shapes_of(reloaded) == shapes_of(sliced)
    torch.testing.assert_close(answer(reloaded), answer(sliced), atol=0, rtol=0)


def test_cutting_twice_is_cutting_once(cut_twice: torch.nn.Module, model: torch.nn.Module) -> None:
    direct = [LayerPlan((2, 3), (0, 6, 8))] * LAYERS
    expected = answer(apply(direct, clone(model)))
    torch.testing.assert_close(answer(cut_twice), expected, atol=1e-6, rtol=0)


def test_the_export_agrees_and_a_wrong_one_is_caught(
    cut_twice: torch.nn.Module, tmp_path: Path
) -> None:
    export_onnx(cut_twice, tmp_path / "model.onnx", max_length=16)
    pad_id = cut_twice.config.pad_token_id
    rows = [row[mask.bool()].tolist() for row, mask in zip(*texts(cut_twice), strict=True)]
    assert check_export(cut_twice, tmp_path / "model.onnx", rows, pad_id=pad_id) < 1e-4
    other = clone(cut_twice)
    layers_of(other)[1].output.LayerNorm.bias.data += 0.1
    with pytest.raises(IntegrityError, match="logits differ"):
        check_export(other, tmp_path / "model.onnx", rows, pad_id=pad_id)
    layers_of(other)[1].output.LayerNorm.bias.data[0] = float("nan")
    with pytest.raises(IntegrityError, match="logits differ by nan"):
        check_export(other, tmp_path / "model.onnx", rows, pad_id=pad_id)


def test_layers_are_dropped(model: torch.nn.Module, tmp_path: Path) -> None:
    cut = clone(model)
    keep_layers(cut, [0, 2])
    skipped = clone(model)
    del layers_of(skipped)[1]
    skipped.config.num_hidden_layers = 2
    torch.testing.assert_close(answer(cut), answer(skipped), atol=0, rtol=0)
    (tmp_path / "tokenizer.json").write_text("{}")
    save_checkpoint(cut, tmp_path / "saved", parent=tmp_path, step={})
    torch.testing.assert_close(answer(load_checkpoint(tmp_path / "saved")), answer(cut))


def test_positions_out_of_reach_change_nothing(model: torch.nn.Module) -> None:
    cut = clone(model)
    keep_positions(cut, 9)
    assert parameters(cut) < parameters(model)
    torch.testing.assert_close(answer(cut), answer(model), atol=0, rtol=0)


def test_vocabulary_rows_move_with_their_ids(model: torch.nn.Module) -> None:
    kept = [0, 1, *range(5, PIECES)]
    cut = clone(model)
    keep_vocabulary(cut, kept, pad=kept.index(model.config.pad_token_id))
    ids, mask = texts(model)
    new_id = {old: new for new, old in enumerate(kept)}
    moved = ids.clone().apply_(lambda old: new_id[old])
    with torch.inference_mode():
        found = cut(input_ids=moved, attention_mask=mask).logits
    if model.config.model_type == "mpnet":
        assert cut.config.pad_token_id == 1  # its position ids count from the padding id
    torch.testing.assert_close(found, answer(model), atol=1e-6, rtol=0)


def test_weights_that_do_not_fit_are_refused(model: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    save_checkpoint(clone(model), tmp_path / "saved", parent=tmp_path, step={})
    record = json.loads((tmp_path / "saved" / "surgery.json").read_text())
    record["layers"][1]["ffn"] -= 1
    (tmp_path / "saved" / "surgery.json").write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match=r"surgery\.json"):
        load_checkpoint(tmp_path / "saved")


def test_an_unknown_architecture_is_refused_by_name() -> None:
    config = AutoConfig.for_model("distilbert", dim=32, n_layers=1, n_heads=2, hidden_dim=16)
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ParamsError, match=r"distilbert.*bert, mpnet"):
        architecture_of(model)


def test_uneven_heads_read_their_own_rows_of_the_shared_bias() -> None:
    model = tiny("mpnet")
    cut = clone(model)
    keep_heads(cut, 0, [3])
    keep_neurons(cut, 2, [0, 1])
    expected = answer(masked(model, [LayerPlan((3,), tuple(range(FFN))),
                                     LayerPlan(tuple(range(HEADS)), tuple(range(FFN))),
                                     LayerPlan(tuple(range(HEADS)), (0, 1))]))  # fmt: skip
    assert not np.allclose(answer(model), expected, atol=1e-3)
    torch.testing.assert_close(answer(cut), expected, atol=1e-5, rtol=1e-4)
