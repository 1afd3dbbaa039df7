"""Saliency against formulas by hand, autograd, finite differences and another implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch_pruning
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification

from tasks.modeling.architecture import architecture_of, layers_of, linear
from tasks.modeling.checkpoint import clone
from tasks.modeling.surgery import (
    factorise_embeddings,
    head_size,
    keep_channels,
    keep_heads,
    keep_layers,
    keep_neurons,
)
from tasks.pruning.calibration import TEXTS_AT_A_TIME
from tasks.pruning.depth import block_influence
from tasks.pruning.importance import (
    Batch,
    ModelScores,
    activation_rms,
    channel_axes,
    importance,
)
from tasks.pruning.one_shot import sparsegpt, wanda
from tasks.pruning.sensitivity import narrowed, passed_over
from tasks.pruning.watch import sharpness
from tests.tiny_models import CLASSES, FFN, HEADS, HIDDEN, KINDS, PIECES, tiny

GRADIENT_METHODS = ("taylor", "fisher")
LAYOUTS = [kind for kind in KINDS if kind not in ("camembert", "xlm-roberta")]
"""Those two are RoBERTa by other names."""


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return tiny(request.param)


def texts(model: nn.Module, count: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, PIECES, (count, 9), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = model.config.pad_token_id, 0
    return ids, mask, torch.randint(0, CLASSES, (count,), generator=generator)


def one_by_one(batch: Batch) -> Iterator[Batch]:
    """Each text alone and without padding."""
    for ids, mask, label in zip(*batch, strict=True):
        length = int(mask.sum())
        yield ids[None, :length], mask[None, :length], label[None]


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    ids, mask, labels = batch
    return F.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, labels)


def owned_by_shape(model: nn.Module) -> dict[tuple[str, int], None]:
    """Parameters and axes that shrink when channels are cut."""
    cut = clone(model)
    keep_channels(cut, range(HIDDEN - 3))
    small = dict(cut.named_parameters())
    return {
        (name, axis): None
        for name, parameter in model.named_parameters()
        for axis, size in enumerate(parameter.shape)
        if small[name].shape[axis] == size - 3
    }


def all_scores(scores: ModelScores) -> list[torch.Tensor]:
    return [t for s in scores.layers for t in (s.heads, s.neurons)] + [scores.channels]


# what the activations are


def test_activations_are_rms_over_real_tokens(model: nn.Module) -> None:
    ids, mask, labels = texts(model)
    batches = [(ids[:2], mask[:2], labels[:2]), (ids[2:], mask[2:], labels[2:])]
    seen: dict[str, list[torch.Tensor]] = {}
    down = linear(layers_of(model)[1], architecture_of(model).ffn_out)
    handles = [
        module.register_forward_hook(
            lambda _, args, out, name=name: seen.setdefault(name, []).append(out)
        )
        for name, module in model.named_modules()
        if "norm" in name.lower().rpartition(".")[2]
    ]
    handles.append(
        down.register_forward_pre_hook(lambda _, args: seen.setdefault("down", []).append(args[0]))
    )
    rms = activation_rms(model, batches)
    for handle in handles:
        handle.remove()

    def by_hand(states: list[torch.Tensor]) -> torch.Tensor:
        pairs = zip(states, batches, strict=True)
        return torch.cat([x[m.bool()] for x, (_, m, _) in pairs]).square().mean(0).sqrt()

    torch.testing.assert_close(rms.neurons[1], by_hand(seen.pop("down")))
    assert len(seen) == 1 + 2 * len(layers_of(model))
    scores = importance(model, batches, method="activation", seed=0)
    torch.testing.assert_close(scores.channels, sum(by_hand(states) for states in seen.values()))
    outgoing = down.weight.detach().norm(dim=0)
    torch.testing.assert_close(scores.layers[1].neurons, rms.neurons[1] * outgoing)


def test_working_in_blocks_of_channels_changes_no_bit() -> None:
    config = AutoConfig.for_model("bert", vocab_size=PIECES, hidden_size=HIDDEN,
                                  num_hidden_layers=1, num_attention_heads=HEADS,
                                  intermediate_size=600)  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids, mask, labels = texts(model)
    seen: list[torch.Tensor] = []
    down = linear(layers_of(model)[0], architecture_of(model).ffn_out)
    handle = down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = activation_rms(model, [(ids, mask, labels)]).neurons[0]
    handle.remove()
    whole = seen[0][mask.bool()].double().square().sum(dim=0)
    assert torch.equal(found, (whole / mask.sum()).sqrt().float())


# the formulas


def test_magnitude_by_hand(model: nn.Module) -> None:
    arch, size = architecture_of(model), head_size(model)
    scores = importance(model, [], method="magnitude", seed=0)
    weight = linear(layers_of(model)[0], arch.attention_output).weight
    torch.testing.assert_close(scores.layers[0].heads[1], weight[:, size : 2 * size].norm())
    down = linear(layers_of(model)[2], arch.ffn_out).weight
    torch.testing.assert_close(scores.layers[2].neurons[7], down[:, 7].norm())
    parameters = dict(model.named_parameters())
    weights = [parameters[n].select(axis, 4).flatten() for n, axis in owned_by_shape(model)]
    torch.testing.assert_close(scores.channels[4], torch.cat(weights).norm())


@pytest.mark.parametrize("rank", [None, 6])
def test_a_channel_owns_what_goes_with_it(model: nn.Module, rank: int | None) -> None:
    model = clone(model)
    if rank is not None:
        factorise_embeddings(model, rank)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    owned = [(names[id(parameter)], axis) for parameter, axis in channel_axes(model)]
    assert len(owned) == len(set(owned))
    assert set(owned) == set(owned_by_shape(model))


def test_gradients_by_autograd_one_text_at_a_time(model: nn.Module) -> None:
    arch, size, batch = architecture_of(model), head_size(model), texts(model)
    sums: list[list[torch.Tensor]] = []  # by text: the signed sums of gradient × weight
    for text in one_by_one(batch):
        copy = clone(model)
        loss_of(copy, text).backward()
        parameters = dict(copy.named_parameters())
        product = {name: p * p.grad for name, p in parameters.items() if p.grad is not None}
        layers = []
        for layer in layers_of(copy):
            out, down = (linear(layer, n).weight for n in (arch.attention_output, arch.ffn_out))
            layers += [(out * out.grad).sum(0).view(-1, size).sum(1), (down * down.grad).sum(0)]
        channels = sum(
            product[name].movedim(axis, 0).flatten(1).sum(1)
            if product[name].dim() > 1
            else product[name]
            for name, axis in owned_by_shape(model)
        )
        sums.append([*layers, channels])
    for method, by_text in (
        ("taylor", torch.Tensor.abs),
        ("fisher", lambda g: g.square() / 2),
    ):
        found = all_scores(importance(model, [batch], method=method, seed=0))
        for score, parts in zip(found, zip(*sums, strict=True), strict=True):
            expected = torch.stack([by_text(part) for part in parts]).mean(0)
            torch.testing.assert_close(score, expected, atol=1e-6, rtol=1e-4)


def scaled(model: nn.Module, unit: str, gate: float) -> nn.Module:
    """A copy with all weights of one unit times a gate: head 2, neuron 5 or channel 3."""
    copy = clone(model)
    arch, size, layer = architecture_of(copy), head_size(copy), layers_of(copy)[1]
    with torch.no_grad():
        if unit == "head":
            linear(layer, arch.attention_output).weight[:, 2 * size : 3 * size] *= gate
        elif unit == "neuron":
            linear(layer, arch.ffn_out).weight[:, 5] *= gate
        else:
            parameters = dict(copy.named_parameters())
            for name, axis in owned_by_shape(model):
                parameters[name].select(axis, 3).mul_(gate)
    return copy


@pytest.mark.parametrize("unit", ["head", "neuron", "channel"])
def test_taylor_is_the_loss_change_of_closing_a_gate_a_little(model: nn.Module, unit: str) -> None:
    exact, batch = clone(model).double(), texts(model, count=2)
    single = architecture_of(model).causal  # Llama's norms compute in single precision always
    step, tolerance = (3e-3, 1e-2) if single else (1e-5, 1e-4)
    changes = []
    for text in one_by_one(batch):
        with torch.no_grad():
            up, down = (loss_of(scaled(exact, unit, 1 + s), text) for s in (step, -step))
        changes.append(float((up - down).abs()) / (2 * step))
    scores = importance(exact, [batch], method="taylor", seed=0)
    found = {
        "head": scores.layers[1].heads[2],
        "neuron": scores.layers[1].neurons[5],
        "channel": scores.channels[3],
    }[unit]
    assert float(found) == pytest.approx(sum(changes) / 2, rel=tolerance)
    assert float(found) > 1e-4


def group_score(
    model: nn.Module, kind: type, text: Batch, **options: object
) -> Callable[[int], torch.Tensor]:
    """The scorer of torch-pruning for the neurons of a layer, outgoing weights only."""
    ids, mask, _ = text
    graph = torch_pruning.DependencyGraph().build_dependency(
        model, example_inputs={"input_ids": ids, "attention_mask": mask}
    )
    scorer = kind(group_reduction="gate", normalizer=None, **options)

    def of_layer(index: int) -> torch.Tensor:
        up = linear(layers_of(model)[index], architecture_of(model).ffn_in)
        group = graph.get_pruning_group(
            up, torch_pruning.prune_linear_out_channels, idxs=list(range(FFN))
        )
        return scorer(group)

    return of_layer


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_neurons_agree_with_torch_pruning(kind: str) -> None:
    model = tiny(kind)
    batch = texts(model)
    magnitude = importance(model, [], method="magnitude", seed=0)
    theirs = group_score(model, torch_pruning.importance.MagnitudeImportance, batch, p=2)
    for index, layer in enumerate(magnitude.layers):
        torch.testing.assert_close(layer.neurons, theirs(index).sqrt())
    taylor = importance(model, [batch], method="taylor", seed=0)
    sums = [torch.zeros(FFN) for _ in layers_of(model)]
    for text in one_by_one(batch):
        model.zero_grad()
        loss_of(model, text).backward()
        theirs = group_score(
            model, torch_pruning.importance.TaylorImportance, text, multivariable=True
        )
        for index, total in enumerate(sums):
            total += theirs(index) / len(batch[0])
    for layer, expected in zip(taylor.layers, sums, strict=True):
        torch.testing.assert_close(layer.neurons, expected, atol=1e-6, rtol=1e-4)


# what must hold of any score


@pytest.mark.parametrize("method", ["activation", "magnitude", *GRADIENT_METHODS])
def test_a_unit_that_adds_nothing_scores_nothing(model: nn.Module, method: str) -> None:
    dead = scaled(scaled(scaled(model, "head", 0), "neuron", 0), "channel", 0)
    scores = importance(dead, [texts(dead)], method=method, seed=0)
    layer = scores.layers[1]
    for values, silent in ((layer.heads, 2), (layer.neurons, 5), (scores.channels, 3)):
        assert values[silent] == 0
        assert (values > 0).sum() == len(values) - 1


@pytest.mark.parametrize("method", ["activation", *GRADIENT_METHODS])
def test_batches_in_any_order_and_of_any_size(model: nn.Module, method: str) -> None:
    batch = texts(model)
    whole = importance(model, [batch], method=method, seed=0)
    apart = importance(model, [*one_by_one(batch)][::-1], method=method, seed=0)
    for one, other in zip(all_scores(whole), all_scores(apart), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
        assert one.max() > 0


def test_random_depends_on_the_seed_only(model: nn.Module) -> None:
    changed = clone(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(2)
    one, other = (importance(m, [], method="random", seed=3) for m in (model, changed))
    for a, b in zip(all_scores(one), all_scores(other), strict=True):
        assert torch.equal(a, b)
    third = importance(model, [texts(model)], method="random", seed=4)
    assert not any(map(torch.equal, all_scores(one), all_scores(third)))
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(one.layers[0].heads, torch.rand(HEADS, generator=generator))
    assert torch.equal(one.layers[0].neurons, torch.rand(FFN, generator=generator))


@pytest.mark.parametrize("method", ["activation", "magnitude", "random", *GRADIENT_METHODS])
def test_an_uneven_model_gets_scores_of_its_own_shapes(model: nn.Module, method: str) -> None:
    cut = clone(model)
    keep_heads(cut, 0, [1, 3])
    keep_neurons(cut, 2, [0, 5, 6])
    keep_channels(cut, range(1, HIDDEN, 2))
    keep_layers(cut, [0, 2])
    scores = importance(cut, [texts(cut)], method=method, seed=0)
    shapes = [(len(layer.heads), len(layer.neurons)) for layer in scores.layers]
    assert shapes == [(2, FFN), (HEADS, 3)]
    assert len(scores.channels) == HIDDEN // 2
    assert all(torch.isfinite(values).all() for values in all_scores(scores))


@pytest.mark.parametrize("method", ["activation", *GRADIENT_METHODS])
def test_the_model_is_left_as_it_was(model: nn.Module, method: str) -> None:
    copy, (ids, mask, labels) = clone(model), texts(model)
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in copy.modules()]
    before = copy(input_ids=ids, attention_mask=mask).logits
    importance(copy, [(ids, mask, labels)], method=method, seed=0)
    with pytest.raises(IndexError):
        importance(copy, [(ids + PIECES, mask, labels)], method=method, seed=0)
    assert all(p.grad is None and p.requires_grad for p in copy.parameters())
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in copy.modules()]
    assert torch.equal(copy(input_ids=ids, attention_mask=mask).logits, before)


def test_an_unknown_method_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="luck"):
        importance(model, [], method="luck", seed=0)


# memory


def peak_bytes(action: Callable[[], object]) -> int:
    """The most bytes that tensors made by an action held at once, as the allocator saw it."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        action()
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = top = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        top = max(top, held)
    return top


@pytest.fixture(scope="module", params=["bert", "llama"])
def sizeable(request: pytest.FixtureRequest) -> nn.Module:
    """Larger than the activations of one text, as every model worth pruning is."""
    config = AutoConfig.for_model(
        request.param, vocab_size=2000, hidden_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, intermediate_size=512,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    config.use_cache, config._attn_implementation = False, "eager"
    return AutoModelForSequenceClassification.from_config(config).eval()


def test_memory_stays_within_twice_the_model(sizeable: nn.Module) -> None:
    size = sum(p.numel() * p.element_size() for p in sizeable.parameters())
    ids = torch.randint(1, 2000, (12, 20))
    batch = (ids, torch.ones_like(ids), torch.zeros(12, dtype=torch.long))
    used = {
        method: peak_bytes(lambda m=method: importance(sizeable, [batch] * 2, method=m, seed=0))
        for method in ("magnitude", "activation", *GRADIENT_METHODS)
    }
    with torch.inference_mode():
        forward = peak_bytes(lambda: sizeable(input_ids=ids, attention_mask=batch[1]))
    used["activation"] -= forward  # one pass over the batch as it is given, like any evaluation
    assert max(used.values()) < size, {method: top / size for method, top in used.items()}
    assert used["activation"] < size / 4
    # the meter, where the answer is known: gradients of all weights, then those of four texts
    weights = list(sizeable.parameters())
    once = peak_bytes(lambda: torch.autograd.grad(loss_of(sizeable, batch), weights))
    assert once > size
    single = [tuple(t[i : i + 1] for t in batch) for i in range(4)]
    each = peak_bytes(
        lambda: [torch.autograd.grad(loss_of(sizeable, text), weights) for text in single]
    )
    assert each > 4 * size


@pytest.fixture(scope="module")
def narrow() -> nn.Module:
    """Of the default student's size before pruning: the smallest model that is worth it."""
    config = AutoConfig.for_model(
        "bert", vocab_size=4272, hidden_size=384, num_hidden_layers=3, num_attention_heads=12,
        intermediate_size=1536, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return AutoModelForSequenceClassification.from_config(config).eval()


def pruned_by_wanda(model: nn.Module, batches: list[Batch]) -> None:
    wanda(model, lambda: batches, target=0.5, pattern="unstructured")


def pruned_by_sparsegpt(model: nn.Module, batches: list[Batch]) -> None:
    sparsegpt(model, lambda: batches, target=0.5, pattern="unstructured")


def looked_at(model: nn.Module, _: list[Batch]) -> None:
    sharpness(model, lambda changed: 0.0, radius=0.05, samples=2, seed=0)


def given_a_product_for_a_table(model: nn.Module, _: list[Batch]) -> None:
    factorise_embeddings(model, 128)


def ranked_by_depth(model: nn.Module, batches: list[Batch]) -> None:
    block_influence(model, batches)


def narrowed_step_by_step(model: nn.Module, _: list[Batch]) -> None:
    narrowed(model, torch.arange(384.0), lambda cut: 0.0)


def passed_over_layer_by_layer(model: nn.Module, batches: list[Batch]) -> None:
    ids, mask, _ = batches[0]
    with torch.inference_mode():
        passed_over(model, lambda cut: float(cut(input_ids=ids, attention_mask=mask).logits.sum()))


@pytest.mark.parametrize(
    "use",
    [
        pruned_by_wanda,
        pruned_by_sparsegpt,
        looked_at,
        given_a_product_for_a_table,
        ranked_by_depth,
        narrowed_step_by_step,
        passed_over_layer_by_layer,
    ],
)
def test_pruning_holds_no_more_than_the_model_once_more(
    narrow: nn.Module, use: Callable[[nn.Module, list[Batch]], None]
) -> None:
    """With batches as `Calibration` makes them, of the longest texts; looking without its loss."""
    model = clone(narrow)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    ids = torch.randint(1, 4272, (TEXTS_AT_A_TIME, 64))
    batch = (ids, torch.ones_like(ids), torch.zeros(len(ids), dtype=torch.long))
    assert peak_bytes(lambda: use(model, [batch] * 2)) <= 1.01 * size
