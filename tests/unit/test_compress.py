"""What the flow refuses before a stage has cost anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.depth import require_depth
from tasks.errors import ParamsError
from tasks.params import assignment, overlay, parse, read_yaml
from tasks.schema import Params

ROOT = Path(__file__).resolve().parents[2]


def params(*settings: str) -> Params:
    content = read_yaml(ROOT / "params.yaml")
    for setting in settings:
        content = overlay(content, assignment(setting))
    return parse(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A teacher of twelve layers and a student of six, fetched."""
    for folder, config in (("pretrained", {"num_hidden_layers": 12}), ("student", {"n_layers": 6})):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["distill.layers=[0, 12]"], r"distill\.layers: found 12, expected indices under 12"),
        (["distill.student.source=package", "distill.layers=[0, 6]"], "indices under 6"),
        (["distill.assistants=[[0, 1, 14]]"], "found 14, expected indices under 12"),
        (["exits.layers=[1, 3]"], r"exits\.layers: found \[1, 3\], expected numbers under 3"),
        (["exits.layers=[2]", "prune.drop_layers=1"], "numbers under 2"),
        (["prune.drop_layers=3"], r"prune\.drop_layers: found 3, expected a number under 3"),
        (["distill.enabled=false", "exits.layers=[12]"], "numbers under 12"),
    ],
)
def test_layers_that_are_not_there(root: Path, settings: list[str], said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        require_depth(root, params(*settings))


@pytest.mark.parametrize(
    "settings",
    [
        ["distill.layers=[0, 11]"],
        ["distill.student.source=fresh", "distill.layers=[40]"],
        ["distill.enabled=false", "distill.layers=[40]", "exits.layers=[11]"],
        ["exits.layers=[1, 2]"],
    ],
)
def test_layers_that_are(root: Path, settings: list[str]) -> None:
    require_depth(root, params(*settings))
    (root / "data" / "pretrained" / "config.json").unlink()
    require_depth(root, params("distill.layers=[40]"))
