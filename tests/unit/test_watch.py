"""Sharpness by hand, weights that come back, and a picture that shows what is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

from tasks.modeling.surgery import LayerShape
from tasks.pruning import watch
from tasks.pruning.watch import heat_map, sharpness
from tests.tiny_models import KINDS, answer, tiny


def loss(model: torch.nn.Module) -> float:
    """Cross-entropy of arbitrary labels."""
    return float(torch.nn.functional.cross_entropy(answer(model), torch.tensor([0, 3, 1])))


def test_every_row_moves_by_the_radius_times_its_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "CHUNK", 7)  # two rows at a time, the last one alone
    layer = torch.nn.Linear(3, 5)
    layer.weight.data[4] = 0.0
    before = layer.weight.detach().clone()
    seen = []

    def moved(model: torch.nn.Module) -> float:
        seen.append((layer.weight.detach() - before, layer.bias.detach().clone()))
        return float(seen[-1][0].norm())

    found = sharpness(layer, moved, radius=0.1, samples=3, seed=1)
    for step, bias in seen[1:]:
        torch.testing.assert_close(step.norm(dim=1), 0.1 * before.norm(dim=1))
        assert torch.equal(bias, layer.bias)
    assert not torch.allclose(seen[1][0], seen[2][0])
    # the rows are disjoint, so that the whole moves by radius times its norm, whatever the sample
    assert found == pytest.approx(0.1 * float(before.norm()), rel=1e-5)


def test_a_quadratic_by_hand() -> None:
    """Around a minimum, loss k/2·‖w − w₀‖² rises by k/2·r²·‖w₀‖² in every direction."""
    layer = torch.nn.Linear(4, 1, bias=False)
    start = layer.weight.detach().clone()

    def bowl(k: float) -> Callable[[torch.nn.Module], float]:
        return lambda m: 7.0 + k / 2 * float((layer.weight.detach() - start).square().sum())

    for k in (1.0, 10.0):
        expected = k / 2 * 0.05**2 * float(start.square().sum())
        found = sharpness(layer, bowl(k), radius=0.05, samples=4, seed=0)
        assert found == pytest.approx(expected, rel=1e-3)


def test_directions_are_gaussian_in_all_directions() -> None:
    """On a plane, loss w₁ rises by nothing on average and by r·‖w‖/√2 in root mean square."""
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.data[:] = torch.tensor([[3.0, 4.0]])
    seen: list[float] = []

    def first(model: torch.nn.Module) -> float:
        seen.append(float(layer.weight[0, 0]))
        return seen[-1]

    mean = sharpness(layer, first, radius=1.0, samples=4000, seed=3)
    rises = np.array(seen[1:]) - 3.0
    assert abs(mean) < 5 * 5 / np.sqrt(2) / np.sqrt(4000)
    assert np.sqrt((rises**2).mean()) == pytest.approx(5 / np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("model_type", KINDS)
def test_weights_come_back_bit_for_bit(model_type: str) -> None:
    model = tiny(model_type)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = sharpness(model, loss, radius=0.05, samples=3, seed=0)
    assert first == sharpness(model, loss, radius=0.05, samples=3, seed=0)
    assert first != sharpness(model, loss, radius=0.05, samples=3, seed=1)
    calls = []

    def fail(m: torch.nn.Module) -> float:
        calls.append(loss(m))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return calls[-1]

    with pytest.raises(KeyboardInterrupt):
        sharpness(model, fail, radius=0.5, samples=3, seed=0)
    assert calls[1] != calls[0]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_wider_radius_rises_more_at_a_minimum() -> None:
    model = tiny("bert")
    target = answer(model).softmax(-1)

    def divergence(m: torch.nn.Module) -> float:
        return float((target * (target.log() - answer(m).log_softmax(-1))).sum())

    rises = [sharpness(model, divergence, radius=r, samples=5, seed=0) for r in (0.0, 0.01, 0.1)]
    assert rises[0] == 0
    assert 0 < rises[1] < rises[2]


def test_no_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="found 0 samples"):
        sharpness(torch.nn.Linear(1, 1), lambda m: 0.0, radius=0.1, samples=0, seed=0)


def full(layers: int) -> list[LayerShape]:
    return [LayerShape(tuple(range(12)), 1536)] * layers


def left(heads: int, ffn: int, weights: float = 1.0) -> dict[str, Any]:
    return {"heads": heads, "ffn": ffn, "weights": weights}


def cut(layers: int, *, heads: int, ffn: int) -> list[dict[str, Any]]:
    return [left(heads, ffn)] * layers


@pytest.mark.parametrize(("layers", "rounds"), [(3, 1), (12, 4), (24, 10)])
def test_the_same_shapes_give_the_same_bytes(tmp_path: Path, layers: int, rounds: int) -> None:
    shapes = [cut(layers, heads=12 - r, ffn=1536 - 128 * r) for r in range(1, rounds + 1)]
    for name in ("a.png", "b.png"):
        heat_map(shapes, full(layers), tmp_path / "deep" / name)
    first, second = ((tmp_path / "deep" / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert b"Software" not in first
    height, width, _ = matplotlib.image.imread(tmp_path / "deep" / "a.png").shape
    assert height >= 36 * layers  # room for a number of eight points in every row
    assert width >= 2 * 60 * (rounds + 1)  # and four digits in every column


def test_the_less_is_left_the_paler(tmp_path: Path) -> None:
    brightness = []
    for heads, ffn in ((12, 1536), (6, 768), (1, 32)):
        heat_map([cut(6, heads=heads, ffn=ffn)] * 3, full(6), tmp_path / "map.png")
        brightness.append(float(matplotlib.image.imread(tmp_path / "map.png")[..., :3].mean()))
    assert brightness == sorted(brightness)
    assert brightness[2] - brightness[0] > 0.1


def test_numbers_stand_in_the_cells_and_a_dropped_layer_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    written: list[tuple[float, float, str]] = []
    draw = Axes.text

    def spy(self: Axes, x: float, y: float, text: str, **style: object) -> object:
        written.append((x, y, text))
        return draw(self, x, y, text, **style)

    monkeypatch.setattr(Axes, "text", spy)
    after = [left(3, 96), None, left(1, 32)]
    heat_map([after], full(3), tmp_path / "map.png")
    heads, neurons = written[:6], written[6:]
    assert [text for _, _, text in heads] == ["12"] * 3 + ["3", "–", "1"]
    assert [text for _, _, text in neurons] == ["1536"] * 3 + ["96", "–", "32"]
    assert heads[3][:2] == (1, 0)
    heat_map([after, [left(3, 96, 0.104), None, left(1, 32, 0.5)]], full(3), tmp_path / "map.png")
    weights = [text for _, _, text in written[-9:]]
    assert weights == ["100"] * 3 + ["100", "–", "100"] + ["10", "–", "50"]


def test_curves_of_damage_stand_beneath(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from tasks.pruning.curves import draw_curves

    whole = ((1, 0.5), (6, 0.25), (12, 0.0))
    damage = {
        "sensitivity": [{"layer": layer, "kind": kind, "raw": whole}
                        for layer in range(3) for kind in ("heads", "neurons")],
        "sensitivity_layers": [0.5, -0.1, 2.0],
        "sensitivity_channels": ((96, 0.75), (192, 0.125), (384, 0.0)),
    }  # fmt: skip
    heat_map([cut(3, heads=6, ffn=768)], full(3), tmp_path / "without.png")
    heat_map([cut(3, heads=6, ffn=768)], full(3), tmp_path / "with.png", damage=damage)
    heat_map([cut(3, heads=6, ffn=768)], full(3), tmp_path / "again.png", damage=damage)
    assert (tmp_path / "with.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    plain, both = (matplotlib.image.imread(tmp_path / f"{n}.png") for n in ("without", "with"))
    assert both.shape[0] > plain.shape[0] + 300
    figure = Figure()
    draw_curves(figure, damage)
    heads, neurons, channels, layers = figure.axes
    assert [len(panel.lines) for panel in figure.axes] == [3, 3, 1, 0]
    for line in (*heads.lines, *neurons.lines):
        assert list(line.get_xdata()) == pytest.approx([100 / 12, 50])
        assert list(line.get_ydata()) == [0.5, 0.25]
    assert list(channels.lines[0].get_xdata()) == [25, 50]
    assert [bar.get_height() for bar in layers.patches] == [0.5, 1e-5, 2.0]


def test_rounds_must_be_aligned(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 3 layers"):
        heat_map([cut(2, heads=1, ffn=1)], full(3), tmp_path / "map.png")
