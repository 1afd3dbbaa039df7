"""Block influence by hand, and the layers that it lets go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tasks.errors import ParamsError
from tasks.modeling.architecture import architecture_of, layers_of, linear
from tasks.modeling.surgery import keep_layers
from tasks.pruning.depth import block_influence, plan_depth
from tasks.pruning.importance import Batch
from tests.tiny_models import KINDS, LAYERS, PIECES, tiny


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return tiny(request.param)


def texts(model: nn.Module) -> Batch:
    ids = torch.randint(5, PIECES, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = model.config.pad_token_id, 0
    return ids, mask, torch.zeros(3, dtype=torch.long)


def test_block_influence_by_hand(model: nn.Module) -> None:
    ids, mask, labels = texts(model)
    batches = [(ids[:2], mask[:2], labels[:2]), (ids[2:], mask[2:], labels[2:])]
    found = block_influence(model, batches)
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    # the library puts Llama's last state through the final norm: no output of a layer
    comparable = LAYERS - architecture_of(model).causal
    for index in range(comparable):
        cosines = [
            float(x @ y / (x.norm() * y.norm()))
            for row in range(3)
            for x, y, real in zip(states[index][row], states[index + 1][row], mask[row],
                                  strict=True)
            if real
        ]  # fmt: skip
        assert float(found[index]) == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-5)
        assert float(found[index]) > 1e-3
    assert len(found) == LAYERS


def test_a_layer_that_adds_nothing_has_no_influence_and_goes() -> None:
    idle = tiny("llama")  # norms before, not after, what they are added to: it can add nothing
    arch, layer = architecture_of(idle), layers_of(idle)[1]
    for name in (arch.attention_output, arch.ffn_out):
        linear(layer, name).weight.data.zero_()
    ids, mask, labels = texts(idle)
    influence = block_influence(idle, [(ids, mask, labels)])
    assert float(influence[1]) == pytest.approx(0, abs=1e-12)
    with torch.inference_mode():
        before = idle(input_ids=ids, attention_mask=mask).logits
        keep = plan_depth(influence, 1)
        keep_layers(idle, keep)
        after = idle(input_ids=ids, attention_mask=mask).logits
    assert keep == (0, 2)
    torch.testing.assert_close(after, before)


def test_hooks_do_not_stay(model: nn.Module) -> None:
    ids, mask, labels = texts(model)
    before = [len(layer._forward_hooks) for layer in layers_of(model)]  # the library has its own
    with pytest.raises(IndexError):
        block_influence(model, [(ids + PIECES, mask, labels)])
    assert [len(layer._forward_hooks) for layer in layers_of(model)] == before


@given(st.lists(st.floats(0, 2), min_size=1, max_size=12), st.data())
def test_the_least_influential_layers_go(values: list[float], data: st.DataObject) -> None:
    influence = torch.tensor(values, dtype=torch.float64)
    drop = data.draw(st.integers(0, len(values) - 1))
    keep = plan_depth(influence, drop)
    assert len(keep) == len(values) - drop
    assert list(keep) == sorted(set(keep))
    gone = set(range(len(values))) - set(keep)
    assert all(values[g] <= values[k] for g in gone for k in keep)


def test_of_equal_layers_the_later_ones_go() -> None:
    assert plan_depth(torch.tensor([0.5, 0.5, 0.5, 0.9]), 2) == (0, 3)


@pytest.mark.parametrize("drop", [3, 7, -1])
def test_one_layer_has_to_stay(drop: int) -> None:
    with pytest.raises(ParamsError, match=rf"prune\.drop_layers: found {drop}, expected 0 to 2"):
        plan_depth(torch.tensor([0.1, 0.2, 0.3]), drop)
