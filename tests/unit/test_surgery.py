"""Single cuts by hand, and the record of them; cuts combined: ``test_combined_cuts.py``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from transformers import AutoConfig, AutoModelForSequenceClassification

from tasks.errors import DataError, IntegrityError, ParamsError
from tasks.modeling.architecture import architecture_of, encoder_of, layers_of, linear
from tasks.modeling.checkpoint import (
    clone,
    load_checkpoint,
    load_pretrained,
    parameters,
    save_checkpoint,
    set_dropout,
)
from tasks.modeling.surgery import (
    head_size,
    keep_heads,
    keep_layers,
    keep_neurons,
    keep_positions,
    keep_vocabulary,
    positions_needed,
    shapes_of,
)
from tasks.pruning.width import LayerPlan, apply
from tests.tiny_models import (
    FFN,
    GROUPED,
    HEADS,
    HIDDEN,
    KINDS,
    LAYERS,
    PIECES,
    answer,
    texts,
    tiny,
)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return tiny(request.param)


def narrowed(model: torch.nn.Module, heads: Sequence[int], ffn: Sequence[int]) -> torch.nn.Module:
    """A copy with the same heads and neurons left in each layer."""
    copy = clone(model)
    for index in range(LAYERS):
        keep_heads(copy, index, heads)
        keep_neurons(copy, index, ffn)
    return copy


def subset(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    chosen = st.sets(st.integers(0, size - 1), min_size=1, max_size=size)
    return chosen.map(lambda s: tuple(sorted(s)))


PLANS = st.lists(st.builds(LayerPlan, subset(HEADS), subset(FFN)), min_size=LAYERS, max_size=LAYERS)


@settings(max_examples=10, deadline=None)
@given(plan=PLANS)
def test_a_plan_is_the_model_with_the_rest_masked(
    model: torch.nn.Module, plan: list[LayerPlan]
) -> None:
    arch, masked = architecture_of(model), clone(model)
    size = head_size(model)
    for layer, cut in zip(layers_of(masked), plan, strict=True):
        for head in set(range(HEADS)) - set(cut.heads):
            linear(layer, arch.attention_output).weight.data[:, head * size : (head + 1) * size] = 0
        gone = sorted(set(range(FFN)) - set(cut.neurons))
        linear(layer, arch.ffn_out).weight.data[:, gone] = 0
    sliced = apply(plan, clone(model))
    torch.testing.assert_close(answer(sliced), answer(masked), atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def cut_twice(model: torch.nn.Module) -> torch.nn.Module:
    first = narrowed(model, (0, 2, 3), range(0, FFN, 2))
    return narrowed(first, (1, 2), (0, 3, 4))


def test_cutting_twice_is_cutting_once(cut_twice: torch.nn.Module, model: torch.nn.Module) -> None:
    expected = answer(narrowed(model, (2, 3), (0, 6, 8)))
    torch.testing.assert_close(answer(cut_twice), expected, atol=1e-6, rtol=0)


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
    if architecture_of(model).tables:  # rotary positions have no rows
        assert parameters(cut) < parameters(model)
    torch.testing.assert_close(answer(cut), answer(model), atol=0, rtol=0)


def test_texts_longer_than_the_positions_are_refused(model: torch.nn.Module) -> None:
    if not architecture_of(model).tables:  # rotary positions have no end
        assert positions_needed(model, 1000) == 0
        return
    most = 40 - (2 if architecture_of(model).positions_after_padding else 0)
    assert positions_needed(model, most) == 40
    with pytest.raises(
        ParamsError, match=rf"data\.max_length: found {most + 1}, expected at most {most}"
    ):
        keep_positions(clone(model), most + 1)


def test_vocabulary_rows_move_with_their_ids(model: torch.nn.Module) -> None:
    kept = [0, 1, *range(5, PIECES)]
    cut = clone(model)
    keep_vocabulary(cut, kept, pad=kept.index(model.config.pad_token_id))
    ids, mask = texts(model)
    new_id = {old: new for new, old in enumerate(kept)}
    moved = ids.clone().apply_(lambda old: new_id[old])
    with torch.inference_mode():
        found = cut(input_ids=moved, attention_mask=mask).logits
    torch.testing.assert_close(found, answer(model), atol=1e-6, rtol=0)


def test_a_truncated_weights_file_is_refused(model: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    save_checkpoint(clone(model), tmp_path / "saved", parent=tmp_path, step={})
    weights = tmp_path / "saved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match=r"saved: .*\n.*dvc checkout"):
        load_checkpoint(tmp_path / "saved")


def test_weights_that_do_not_fit_are_refused(model: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    save_checkpoint(clone(model), tmp_path / "saved", parent=tmp_path, step={})
    record = json.loads((tmp_path / "saved" / "surgery.json").read_text())
    record["layers"][1]["ffn"] -= 1
    (tmp_path / "saved" / "surgery.json").write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match=r"surgery\.json"):
        load_checkpoint(tmp_path / "saved")


def test_an_unknown_architecture_is_refused_by_name() -> None:
    config = AutoConfig.for_model("electra", hidden_size=32, num_hidden_layers=1,
                                  num_attention_heads=2, intermediate_size=16)  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ParamsError, match=r"electra.*bert, camembert, distilbert, llama, mpnet"):
        architecture_of(model)


def test_uneven_heads_read_their_own_rows_of_the_shared_bias() -> None:
    model = tiny("mpnet")
    bias = model.mpnet.encoder.relative_attention_bias
    cut = clone(model)
    keep_heads(cut, 0, [3])
    keep_layers(cut, [0])  # then nobody reads the other heads' rows
    before = answer(cut)
    cut.mpnet.encoder.relative_attention_bias.weight.data[:, :3] += 1 + bias.weight[:, :3]
    torch.testing.assert_close(answer(cut), before, atol=0, rtol=0)
    cut.mpnet.encoder.relative_attention_bias.weight.data[:, 3] += bias.weight[:, 0]
    assert not np.allclose(answer(cut), before, atol=1e-3)


def test_a_key_goes_with_all_queries_that_read_it() -> None:
    model = tiny(GROUPED)
    arch, layer = architecture_of(model), layers_of(model)[0]
    queries = linear(layer, arch.query).weight.detach().clone()
    keys = linear(layer, arch.key).weight.detach().clone()
    keep_heads(model, 0, [1, 3])
    size = HIDDEN // HEADS
    queries, keys = queries.view(HEADS, 2 * size, HIDDEN), keys.view(HEADS, size, HIDDEN)
    assert torch.equal(linear(layer, arch.query).weight, queries[[1, 3]].reshape(-1, HIDDEN))
    assert torch.equal(linear(layer, arch.key).weight, keys[[1, 3]].reshape(-1, HIDDEN))
    assert head_size(model) == 2 * size
    assert shapes_of(model)[0].heads == (1, 3)


def test_a_gate_goes_with_its_neurons() -> None:
    model = tiny("llama")
    gate = model.model.layers[2].mlp.gate_proj.weight.detach().clone()
    keep_neurons(model, 2, [0, 7])
    assert torch.equal(model.model.layers[2].mlp.gate_proj.weight, gate[[0, 7]])


def test_the_first_format_of_the_record_still_loads(model: torch.nn.Module, tmp_path: Path) -> None:
    cut = narrowed(model, (0, 2, 3), range(0, FFN, 2))
    (tmp_path / "tokenizer.json").write_text("{}")
    save_checkpoint(cut, tmp_path / "saved", parent=tmp_path, step={"stage": "prune"})
    record = json.loads((tmp_path / "saved" / "surgery.json").read_text())
    assert record["format"] == 2
    first = {"format": 1, "layers": record["layers"], "lineage": record["lineage"]}
    (tmp_path / "saved" / "surgery.json").write_text(json.dumps(first))
    torch.testing.assert_close(answer(load_checkpoint(tmp_path / "saved")), answer(cut))


def test_a_record_of_another_model_is_refused(model: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    save_checkpoint(clone(model), tmp_path / "saved", parent=tmp_path, step={})
    record = json.loads((tmp_path / "saved" / "surgery.json").read_text())
    record["channels"].append(HIDDEN)
    (tmp_path / "saved" / "surgery.json").write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match=r"surgery\.json"):
        load_checkpoint(tmp_path / "saved")


def test_dropout_is_set_wherever_it_is(model: torch.nn.Module) -> None:
    loud = clone(model)
    set_dropout(loud, 0.5)
    ids, mask = texts(model)
    attention = layers_of(loud)[0].get_submodule(architecture_of(loud).attention)
    attention.train()  # the dropout of one layer's attention, and no other
    torch.manual_seed(1)
    with torch.inference_mode():
        first, second = (loud(input_ids=ids, attention_mask=mask).logits for _ in range(2))
    assert not torch.equal(first, second)
    set_dropout(loud, 0.0)
    torch.testing.assert_close(answer(loud), answer(model), atol=0, rtol=0)


def test_a_classifier_of_other_classes_gets_a_new_head(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, classes=7, dropout=0.1, seed=0)
    assert answer(loaded.eval()).shape == (3, 7)
    old = encoder_of(model).state_dict()
    for name, tensor in encoder_of(loaded).state_dict().items():
        torch.testing.assert_close(tensor, old[name], atol=0, rtol=0)
    weights = load_file(tmp_path / "model.safetensors")
    wide = next(name for name in weights if "word_embeddings" in name or "embed_tokens" in name)
    save_file({**weights, wide: weights[wide][:, :8].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="of its size"):
        load_pretrained(tmp_path, classes=7, dropout=0.1, seed=0)


def test_a_pretrained_model_gets_a_new_head(model: torch.nn.Module, tmp_path: Path) -> None:
    encoder_of(model).save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, classes=7, dropout=0.1, seed=0)
    assert answer(loaded.eval()).shape == (3, 7)
    old = encoder_of(model).state_dict()
    for name, tensor in encoder_of(loaded).state_dict().items():
        torch.testing.assert_close(tensor, old[name], atol=0, rtol=0)
    config = json.loads((tmp_path / "config.json").read_text())
    rows = len(next(loaded.get_input_embeddings().parameters()))
    words = {"[UNK]": 0, "beyond": rows}
    (tmp_path / "tokenizer.json").write_text(
        Tokenizer(WordPiece(vocab=words, unk_token="[UNK]")).to_str()
    )
    with pytest.raises(DataError, match=f"has a piece with id {rows}"):
        load_pretrained(tmp_path, classes=7, dropout=0.1, seed=0)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    with pytest.raises(DataError, match="has no pad_token_id"):
        load_pretrained(tmp_path, classes=7, dropout=0.1, seed=0)
