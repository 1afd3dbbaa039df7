"""Terms on states, attention, embeddings and text vectors, by hand and on real models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification

from tasks import schema
from tasks.modeling.architecture import architecture_of, layers_of, linear
from tasks.modeling.checkpoint import clone
from tasks.modeling.surgery import keep_heads, keep_layers
from tasks.training.alignment import NO_WORD
from tasks.training.contrastive import info_nce
from tasks.training.distances import (
    embedding_distance,
    map_distance,
    relation_distance,
    state_distance,
)
from tasks.training.states import (
    StateMatching,
    forward_kwargs,
    layer_map,
    matched_layers,
    needs_teacher,
    relation_heads,
)
from tests.tiny_models import GROUPED, tiny

PAD = {"bert": 0, "mpnet": 1}
TERMS = ("states", "attention", "embeddings", "contrastive")


def settings_of(**changes: Any) -> schema.Distillation:
    off = {
        "logits": "kl", "temperature": 4.0, "temperature_end": None, "alpha": 0.0,
        "alpha_end": None, "states": 0.0, "attention": 0.0, "attention_form": "maps",
        "embeddings": 0.0, "contrastive": 0.0, "growth": 0.0,
    }  # fmt: skip
    return schema.Distillation(**{**off, **changes})


EVERYTHING = {"states": 1.0, "attention": 1.0, "embeddings": 1.0, "contrastive": 1.0}


def encoder(
    model_type: str = "bert", *, hidden: int = 32, heads: int = 4, layers: int = 3, seed: int = 0
) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        model_type, vocab_size=50, hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=24, max_position_embeddings=40,
        num_labels=5, pad_token_id=PAD[model_type], initializer_range=0.2,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return AutoModelForSequenceClassification.from_config(config).eval()


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def batch(seed: int = 1, *, rows: int = 4, pieces: int = 9, pad: int = 0) -> Batch:
    """Ids, mask and words; the second text is shorter, the last piece is a separator."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (rows, pieces), generator=generator)
    steps = torch.randint(0, 2, (rows, pieces), generator=generator)
    steps[:, :2] = torch.tensor([0, 1])
    words = steps.cumsum(1)
    words[:, -1] = NO_WORD
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:], words[1, 5:] = pad, 0, NO_WORD
    return ids, mask, words


def run(model: torch.nn.Module, batch: Batch, config: schema.Distillation) -> Any:
    return model(input_ids=batch[0], attention_mask=batch[1], **forward_kwargs(config))


def terms(
    student: torch.nn.Module, teacher: torch.nn.Module, config: schema.Distillation,
    own: Batch, other: Batch, progress: float = 1.0,
) -> dict[str, torch.Tensor]:  # fmt: skip
    torch.manual_seed(3)
    matching = StateMatching(student, teacher, config)
    with torch.no_grad():
        theirs = run(teacher, other, config)
    found = matching.terms(run(student, own, config), theirs, own[2], other[2], progress)
    matching.close()
    return found


def test_layers_are_mapped_evenly_and_last_to_last() -> None:
    assert layer_map(4, 12) == (2, 5, 8, 11)
    assert layer_map(2, 3) == (1, 2)  # 1.5 is rounded up
    assert layer_map(4, 6) == (1, 2, 4, 5)  # so is 4.5
    assert layer_map(3, 3) == (0, 1, 2)
    assert layer_map(1, 6) == (5,)
    assert layer_map(6, 2) == (0, 0, 0, 0, 1, 1)


@given(st.integers(1, 30), st.integers(1, 30))
def test_a_layer_map_rises_within_the_teacher(student: int, teacher: int) -> None:
    found = layer_map(student, teacher)
    assert list(found) == sorted(found)
    assert found[0] >= 0
    assert found[-1] == teacher - 1
    if student <= teacher:
        assert len(set(found)) == student


def test_matched_layers_grow() -> None:
    assert [matched_layers(4, 0.5, p) for p in (0.0, 0.1, 0.125, 0.13, 0.49, 0.5, 1.0)] == [
        1, 1, 1, 2, 4, 4, 4,
    ]  # fmt: skip
    assert matched_layers(4, 0.0, 0.0) == 4
    assert matched_layers(3, 0.3, 0.1) == 1  # 3 × 0.1 / 0.3 is a little more than 1 in floats


def test_state_distance_by_hand() -> None:
    student = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[6.0, 8.0], [0.0, 5.0], [1.0, 0.0]]])
    shared = torch.tensor([[True, True, False]])
    # the same direction: 0; at a right angle: 2
    assert state_distance(student, teacher, shared).item() == pytest.approx(1.0)
    assert state_distance(student, -student, shared).item() == pytest.approx(4.0)
    assert state_distance(student, teacher, torch.zeros(1, 3).bool()).item() == 0


def test_embedding_distance_by_hand() -> None:
    student, teacher = torch.tensor([[[1.0, 2.0], [7.0, 7.0]]]), torch.zeros(1, 2, 2)
    shared = torch.tensor([[True, False]])
    assert embedding_distance(student, teacher, shared).item() == pytest.approx((1 + 4) / 2)


def test_map_distance_by_hand() -> None:
    student = torch.tensor([[[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.2, 0.6]]] * 2])
    teacher = student.clone()
    teacher[0, 1, 0] = torch.tensor([0.2, 0.1, 0.7])  # one head of two, one query of two
    shared = torch.tensor([[True, True, False]])
    expected = (0.3**2 + 0.4**2) / 2 / 2
    assert map_distance(student, teacher, shared).item() == pytest.approx(expected)


def test_relations_by_hand() -> None:
    # one head of one channel: scores are products, words (1, 2) and (0, 1)
    teacher, student = torch.tensor([[[1.0], [2.0], [50.0]]]), torch.tensor([[[0.0], [1.0], [-9]]])
    shared = torch.tensor([[True, True, False]])

    def softmax(*scores: float) -> list[float]:
        total = sum(map(math.exp, scores))
        return [math.exp(s) / total for s in scores]

    rows = [(softmax(1, 2), softmax(0, 0)), (softmax(2, 4), softmax(0, 1))]
    kl = [sum(p * math.log(p / q) for p, q in zip(t, s, strict=True)) for t, s in rows]
    found = relation_distance(student, teacher, shared, 1)
    assert found.item() == pytest.approx(sum(kl) / 2, rel=1e-5)


def test_relations_against_loops_with_widths_that_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 5, 12, generator=generator)
    teacher = torch.randn(2, 5, 20, generator=generator)
    shared = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 0, 0]]).bool()
    values = []
    for row in range(2):
        at = shared[row].nonzero()[:, 0]
        for word in at:
            per_head = []
            for head in range(4):
                s, t = student[row, at, 3 * head :][:, :3], teacher[row, at, 5 * head :][:, :5]
                here = int((at == word).nonzero())
                p = torch.softmax(t @ t[here] / math.sqrt(5), 0)
                q = torch.softmax(s @ s[here] / math.sqrt(3), 0)
                per_head.append((p * (p / q).log()).sum())
            values.append(torch.stack(per_head).mean())
    expected = torch.stack(values).mean()
    torch.testing.assert_close(relation_distance(student, teacher, shared, 4), expected)


def test_relation_heads_divide_both_widths() -> None:
    assert relation_heads(384, 768, 12) == 12
    assert relation_heads(160, 768, 12) == 8  # five heads of 32 are left
    assert relation_heads(7, 768, 12) == 1


def test_texts_that_share_no_word_leave_no_nan() -> None:
    vectors = torch.randn(2, 3, 4, requires_grad=True)
    shared = torch.tensor([[True, True, False], [False, False, False]])
    other = torch.randn(2, 3, 4)
    other[1] = 0
    loss = relation_distance(vectors, other, shared, 2) + state_distance(vectors, other, shared)
    loss.backward()
    assert torch.isfinite(loss)
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()
    assert vectors.grad[1].abs().sum() == 0


def test_groups_of_queries_are_compared_with_the_same_groups() -> None:
    teacher = tiny(GROUPED)
    keep_layers(teacher, [0])  # its input is the same on both sides
    student = clone(teacher)
    keep_heads(student, 0, [1, 3])
    config, data = settings_of(attention=1.0), batch()
    assert terms(student, teacher, config, data, data)["attention"] == 0
    other = clone(teacher)
    keep_heads(other, 0, [0, 2])
    student.model.layers[0].load_state_dict(other.model.layers[0].state_dict())
    assert terms(student, teacher, config, data, data)["attention"] > 1e-3


def test_a_causal_model_speaks_with_its_last_word() -> None:
    model, data = tiny("llama"), batch()
    data[0][:, 0] = 7  # all begin alike, and the first piece sees nothing else
    same = terms(model, model, settings_of(contrastive=1.0), data, data)["contrastive"].item()
    assert abs(same - math.log(len(data[0]))) > 0.05


def test_info_nce_by_hand() -> None:
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0], [3.0, 3.0]])
    c = math.cos(math.pi / 4)  # similarities [[1, c], [0, c]] / 0.5

    def lost(own: float, *others: float) -> float:
        return -math.log(math.exp(own / 0.5) / sum(math.exp(x / 0.5) for x in (own, *others)))

    expected = (lost(1, c) + lost(c, 0) + lost(1, 0) + lost(c, c)) / 4
    assert info_nce(student, teacher, 0.5).item() == pytest.approx(expected, rel=1e-5)
    assert info_nce(student[:1], teacher[:1], 0.1).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_computes_and_captures_only_with_a_weight(name: str) -> None:
    config = settings_of(**{name: 2.0})
    student, teacher = encoder(hidden=32), encoder(hidden=48, seed=1)
    assert needs_teacher(config)
    found = terms(student, teacher, config, batch(), batch())
    assert list(found) == [name]
    assert found[name] > 0
    wanted = {"output_attentions"} if name == "attention" else {"output_hidden_states"}
    assert set(forward_kwargs(config)) == wanted
    projections = {"states": 3, "attention": 0, "embeddings": 1, "contrastive": 2}[name]
    matching = StateMatching(student, teacher, config)
    assert len(list(matching.parameters())) == projections
    assert not any(m._forward_hooks for m in student.modules() if isinstance(m, torch.nn.Linear))
    out, theirs = run(student, batch(), config), run(teacher, batch(), config)
    total = matching(out, theirs, batch()[2], batch()[2], 1.0)
    part = matching.terms(out, theirs, batch()[2], batch()[2], 1.0)[name]
    torch.testing.assert_close(total, 2 * part)


def test_nothing_is_asked_for_without_weights() -> None:
    assert not needs_teacher(settings_of())
    assert forward_kwargs(settings_of()) == {}
    relations = settings_of(attention=1.0, attention_form="relations")
    assert needs_teacher(relations)
    assert forward_kwargs(relations) == {}


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
@pytest.mark.parametrize("form", ["maps", "relations"])
def test_a_model_matches_itself(model_type: str, form: str) -> None:
    teacher = encoder(model_type)
    data = batch(pad=PAD[model_type])
    config = settings_of(states=1.0, attention=1.0, embeddings=1.0, attention_form=form)
    found = terms(clone(teacher), teacher, config, data, data)
    assert set(found) == {"states", "attention", "embeddings"}
    assert all(value.item() == pytest.approx(0, abs=1e-6) for value in found.values())
    changed = terms(encoder(model_type, seed=7), teacher, config, data, data)
    assert all(value.item() > 1e-3 for value in changed.values())


def test_a_model_matches_itself_though_texts_are_cut_off_on_one_side() -> None:
    # the last words of a text lie behind its shared ones: one side has lost them
    teacher, data = encoder(), batch()
    config = settings_of(states=1.0, embeddings=1.0)
    fewer = data[2].masked_fill(data[2] > 2, NO_WORD)
    found = terms(clone(teacher), teacher, config, (*data[:2], fewer), data)
    assert all(value.item() == pytest.approx(0, abs=1e-6) for value in found.values())


def test_growth_leaves_the_upper_layers_out_at_first() -> None:
    student, teacher, data = encoder(layers=2, seed=4), encoder(layers=4), batch()
    config = settings_of(states=1.0, growth=0.5)
    every = torch.arange(9).expand(4, 9).masked_fill(data[1] == 0, NO_WORD)
    data = (data[0], data[1], every)  # each piece a word of its own
    own, other = (run(model, data, config).hidden_states for model in (student, teacher))
    lower, upper = (state_distance(own[j], other[t], data[1].bool()) for j, t in ((1, 2), (2, 4)))
    early = terms(student, teacher, config, data, data, progress=0.1)["states"]
    late = terms(student, teacher, config, data, data, progress=0.5)["states"]
    torch.testing.assert_close(early, lower)
    torch.testing.assert_close(late, (lower + upper) / 2)


def test_states_of_a_real_forward_pass_by_hand() -> None:
    student, teacher, (ids, mask, _) = encoder(layers=2, seed=4), encoder(layers=4), batch(rows=2)
    words = torch.tensor([[0, 1, 1, 2, 3, 3, 3, 4, -1], [0, 1, 2, 2, 3, -1, -1, -1, -1]])
    config = settings_of(states=1.0)
    own, other = run(student, (ids, mask, words), config), run(teacher, (ids, mask, words), config)
    layers = []
    for j, t in ((0, 1), (1, 3)):
        values = []
        for row in range(2):
            for word in range(int(words[row].max()) + 1):
                at = words[row] == word
                a = own.hidden_states[j + 1][row, at].mean(0)
                b = other.hidden_states[t + 1][row, at].mean(0)
                values.append(2 - 2 * F.cosine_similarity(a, b, dim=0))
        layers.append(torch.stack(values).mean())
    data = (ids, mask, words)
    found = terms(student, teacher, config, data, data)["states"]
    torch.testing.assert_close(found, torch.stack(layers).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_heads_that_are_left_are_compared_with_their_own(model_type: str) -> None:
    teacher, data = encoder(model_type), batch(pad=PAD[model_type])
    config = settings_of(attention=1.0)
    cut = clone(teacher)
    keep_heads(cut, 0, [1, 3])  # the first layer's heads compute what they did before
    one = settings_of(attention=1.0, growth=1.0)
    found = terms(cut, teacher, one, data, data, progress=0.0)["attention"]
    assert found.item() == pytest.approx(0, abs=1e-6)
    assert terms(cut, teacher, config, data, data)["attention"].item() > 1e-5


def test_head_counts_that_differ_are_averaged() -> None:
    student, teacher = encoder(heads=2, seed=2), encoder(heads=8)
    config = settings_of(attention=1.0)
    ids, mask, _ = (x[:1] for x in batch())
    data = (ids, mask, torch.arange(9).unsqueeze(0))
    own = torch.stack(run(student, data, config).attentions).mean(2)
    other = torch.stack(run(teacher, data, config).attentions).mean(2)
    expected = (own - other).square().sum(-1).mean()
    found = terms(student, teacher, config, data, data)["attention"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_relations_are_of_the_last_matched_layer_after_heads_were_cut(model_type: str) -> None:
    teacher, data = encoder(model_type, layers=4), batch(pad=PAD[model_type])
    student = clone(teacher)
    keep_layers(student, [1, 3])
    keep_heads(student, 1, [0, 2, 3])
    config = settings_of(attention=1.0, attention_form="relations", growth=0.5)
    inputs = {}
    for name, model, index in (("s0", student, 0), ("t1", teacher, 1), ("s1", student, 1),
                               ("t3", teacher, 3)):  # fmt: skip
        states = run(model, data, settings_of(states=1.0)).hidden_states[index]
        arch, layer = architecture_of(model), layers_of(model)[index]
        inputs[name] = [linear(layer, n)(states) for n in (arch.query, arch.key, arch.value)]
    words = torch.arange(9).expand(4, 9).masked_fill(data[1] == 0, NO_WORD)
    data = (data[0], data[1], words)
    for progress, own, other, heads in ((0.1, "s0", "t1", 4), (1.0, "s1", "t3", 4)):
        expected = torch.stack([
            relation_distance(a, b, data[1].bool(), heads)
            for a, b in zip(inputs[own], inputs[other], strict=True)
        ]).mean()  # fmt: skip
        found = terms(student, teacher, config, data, data, progress)["attention"]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_hooks_go_when_closed_and_nothing_stays_behind() -> None:
    student, teacher, data = encoder(), encoder(seed=1), batch()
    config = settings_of(attention=1.0, attention_form="relations")
    matching = StateMatching(student, teacher, config)
    outs = run(student, data, config), run(teacher, data, config)
    matching(*outs, data[2], data[2], 1.0)
    with pytest.raises(RuntimeError, match="both models"):
        matching(*outs, data[2], data[2], 1.0)  # of the forward pass before
    matching.close()
    hooks = [m for model in (student, teacher) for m in model.modules() if m._forward_hooks]
    assert hooks == []


@pytest.mark.parametrize("form", ["maps", "relations"])
@pytest.mark.parametrize(("own", "other"), [("bert", "mpnet"), ("mpnet", "bert")])
def test_gradients_reach_student_and_projections_and_never_the_teacher(
    form: str, own: str, other: str
) -> None:
    student = encoder(own, hidden=32, layers=2)
    teacher = encoder(other, hidden=48, heads=6, layers=4, seed=1)
    config = settings_of(**EVERYTHING, attention_form=form)
    matching = StateMatching(student, teacher, config)
    mine, theirs = batch(pad=PAD[own]), batch(2, pieces=12, pad=PAD[other])
    # on purpose with a teacher whose graph is there
    loss = matching(
        run(student, mine, config), run(teacher, theirs, config), mine[2], theirs[2], 1.0
    )
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in matching.parameters())
    for layer in layers_of(student):
        for name in (architecture_of(student).query, architecture_of(student).value):
            grad = linear(layer, name).weight.grad
            assert grad is not None
            assert torch.isfinite(grad).all()
            assert grad.abs().sum() > 0
    assert not any(".bert" in name or ".mpnet" in name for name in matching.state_dict())


@pytest.mark.parametrize("name", [*TERMS, "relations"])
def test_a_narrow_student_learns(name: str) -> None:
    teacher = encoder("mpnet", hidden=48, heads=6, layers=4, seed=1)
    student = encoder("bert", hidden=32, layers=2)
    form = "relations" if name == "relations" else "maps"
    weight = "attention" if name == "relations" else name
    config = settings_of(**{weight: 1.0}, attention_form=form)
    torch.manual_seed(0)
    matching = StateMatching(student, teacher, config)
    rate = 0.02 if name in ("attention", "relations") else 0.005
    optimizer = torch.optim.AdamW([*student.parameters(), *matching.parameters()], lr=rate)
    mine, theirs = batch(rows=8), batch(2, rows=8, pieces=12, pad=1)
    losses = []
    for _ in range(25):
        with torch.no_grad():
            out = run(teacher, theirs, config)
        loss = matching(run(student, mine, config), out, mine[2], theirs[2], 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@settings(max_examples=15, deadline=None)
@given(more=st.integers(1, 6), form=st.sampled_from(["maps", "relations"]), seed=st.integers(0, 9))
def test_padding_changes_nothing(more: int, form: str, seed: int) -> None:
    def longer(data: Batch, pad: int) -> Batch:
        ids, mask, words = data
        return (F.pad(ids, (0, more), value=pad), F.pad(mask, (0, more)),
                F.pad(words, (0, more), value=NO_WORD))  # fmt: skip

    config = settings_of(**EVERYTHING, attention_form=form)
    mine, theirs = batch(seed), batch(seed + 1, pieces=12, pad=1)
    with torch.no_grad():
        found = terms(NARROW, TEACHER, config, mine, theirs)
        padded = terms(NARROW, TEACHER, config, longer(mine, 0), longer(theirs, 1))
    for name in TERMS:
        torch.testing.assert_close(padded[name], found[name], atol=1e-5, rtol=1e-4)


NARROW = encoder(hidden=32, layers=2)
TEACHER = encoder("mpnet", hidden=48, heads=6, layers=4, seed=1)


def test_projections_come_from_the_seed() -> None:
    config = settings_of(**EVERYTHING)
    made = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        made.append(torch.cat([p.flatten() for p in StateMatching(NARROW, TEACHER, config)
                               .parameters()]))  # fmt: skip
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_half_precision_is_compared_in_full() -> None:
    config = settings_of(**EVERYTHING)
    mine, theirs = batch(), batch(2, pieces=12, pad=1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = terms(NARROW, TEACHER, config, mine, theirs)
    with torch.no_grad():
        full = terms(NARROW, TEACHER, config, mine, theirs)
    assert all(value.dtype == torch.float32 for value in found.values())
    for name in TERMS:
        torch.testing.assert_close(found[name], full[name], rtol=0.05, atol=0.01)
