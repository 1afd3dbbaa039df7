"""params.yaml: every shipped file fits, every mistake is named before any work begins."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tasks import schema
from tasks.errors import ParamsError
from tasks.params import assignment, fingerprint, load, overlay, parse, read_yaml

ROOT = Path(__file__).resolve().parents[2]
RAW = read_yaml(ROOT / "params.yaml")
RECIPES = sorted((ROOT / "infra" / "recipes").glob("*.yaml"))


def leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        inner = isinstance(value, dict)
        found += leaves(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]
    return found


def changed(key: str, value: Any) -> dict[str, Any]:
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return overlay(copy.deepcopy(RAW), nested)


def test_params_yaml_fits() -> None:
    assert load(ROOT / "params.yaml").seed == RAW["seed"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_fits_and_changes_only_known_keys(path: Path) -> None:
    recipe = read_yaml(path)
    parse(overlay(RAW, recipe))
    assert set(leaves(recipe)) <= set(leaves(RAW)) | {"teacher.package.parts"}


def test_there_are_the_recipes_that_readme_names() -> None:
    assert {"smoke", "headline"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("key", leaves(RAW))
def test_every_key_is_needed_and_typed(key: str) -> None:
    """Removing a key is refused by name; so is a value of a type that it can never have."""
    broken = copy.deepcopy(RAW)
    *parents, last = key.split(".")
    section = broken
    for part in parents:
        section = section[part]
    section[last] = {"no": "such"}
    with pytest.raises(ParamsError, match=key.replace(".", r"\.")) as caught:
        parse(broken)
    assert "found" in str(caught.value)
    assert "expected" in str(caught.value)
    del section[last]
    if last != "parts":
        with pytest.raises(ParamsError, match=key.replace(".", r"\.")):
            parse(broken)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("prune.ffn_keep", 1.5, "less than or equal to 1"),
        ("prune.ffn_keep", 0, "greater than 0"),
        ("prune.importance", "taylor?", "'magnitude', 'taylor', 'fisher' or 'random'"),
        ("prune.sparsity.method", "lottery", "distill.early"),
        ("distill.student.fresh.heads", 5, "multiple of heads"),
        ("teacher.training.epochs", "many", "number"),
        ("teacher.training.batch_size", 32.5, "integer"),
        ("hardware.threads", 0, "greater than or equal to 1"),
        ("distill.enabled", "yes please", "boolean"),
        ("data.package.sha256", "abc", "pattern"),
        ("evaluation.country", "Germany", "pattern"),
        ("evaluation.country", "deu", "pattern"),
        ("evaluation.country", "XXX", "ISO 3166"),
        ("evaluation.batches", [8, 1], "starts with 1"),
        ("distill.layers", [0, 0], "distinct"),
        ("gate.max_ece", float("nan"), "finite number"),
    ],
)
def test_ranges(key: str, value: Any, expected: str) -> None:
    with pytest.raises(ParamsError) as caught:
        parse(changed(key, value))
    assert key in str(caught.value)
    assert expected in str(caught.value)


def test_sparsity_that_cannot_come_out_is_refused() -> None:
    wanda = {"sparsity": {"method": "wanda", "pattern": "2of4"}}
    with pytest.raises(ParamsError, match=r"prune\.sparsity\.target: found 0\.9, expected 0\.5"):
        parse(changed("prune", wanda))
    gradual = {"sparsity": {"method": "magnitude"}, "training": {"patience": 2}}
    with pytest.raises(ParamsError, match=r"prune\.training\.patience: found 2, expected 0"):
        parse(changed("prune", gradual))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prune": {"sparsity": {"method": "magnitude"}, "training": {"epochs": 0}}},
         r"prune\.training\.epochs: found 0"),
        ({"prune": {"sparsity": {"method": "wanda", "scope": "global"}}},
         r"prune\.sparsity\.scope: found global"),
        ({"prune": {"budget": {"bytes": 4_000_000}, "scope": "global"}},
         r"prune\.scope: found global"),
        ({"prune": {"sparsity": {"method": "lottery"}}, "distill": {"early": 0.1, "students": 2}},
         r"distill\.students: found 2"),
        ({"prune": {"sparsity": {"method": "lottery"}},
          "distill": {"early": 0.1, "enabled": False}},
         r"distill\.early: found 0\.1 of 0 epochs"),
        ({"distill": {"early": 0.5, "training": {"patience": 1}}},
         r"distill\.training\.patience: found 1 with distill\.early"),
        ({"distill": {"early": 0.5, "training": {"epochs": 0}}},
         r"distill\.early: found 0\.5 of 0 epochs"),
        ({"distill": {"states": float("inf")}}, r"distill\.states: found inf"),
        ({"distill": {"assistants": [[0, 1]], "student": {"source": "fresh"}}},
         r"distill\.assistants: .* fresh"),
        ({"quantize": {"scheme": "half", "aware": {"mode": "always"}}},
         r"quantize\.aware\.mode: found always with quantize\.scheme half"),
    ],
)  # fmt: skip
def test_what_would_be_passed_over_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        parse(overlay(RAW, settings))


def test_a_second_teacher_needs_a_model_of_its_own() -> None:
    for source in ("teacher", "fresh", "run"):
        wanted = {"enabled": True}
        content = overlay(
            changed("teach.second", wanted), {"distill": {"student": {"source": source}}}
        )
        with pytest.raises(
            ParamsError, match=rf"teach\.second\.enabled: .* {source}, expected one"
        ):
            parse(content)
    both = {"distill": {"student": {"source": "package"}}}
    asked = overlay(changed("teach.second", {"enabled": True}), both)
    with pytest.raises(ParamsError, match=r"teach\.second\.enabled: .* teacher's own model"):
        parse(asked)
    other = {"teacher": {"package": {"name": "another"}}}
    assert parse(overlay(asked, other)).teach.second.enabled
    none = {"teach": {"second": {"training": {"epochs": 0}}}}
    with pytest.raises(ParamsError, match=r"teach\.second\.training\.epochs: found 0"):
        parse(overlay(overlay(asked, other), none))


@pytest.mark.parametrize("source", ["path", "hub"])
def test_a_writer_that_is_off_has_no_source_of_its_own(source: str) -> None:
    wanted = {"source": source, "hub": {"id": "a/b", "revision": "c"}}
    with pytest.raises(ParamsError, match=rf"teach\.writer\.enabled: found false .* {source}"):
        parse(changed("teach.writer", wanted))
    assert parse(changed("teach.writer", wanted | {"enabled": True})).teach.writer.source == source


def test_a_budget_plans_no_channels() -> None:
    budget = {"budget": {"bytes": 4_000_000}, "hidden_keep": 0.5}
    with pytest.raises(ParamsError, match=r"prune\.hidden_keep: found 0\.5 with a prune\.budget"):
        parse(changed("prune", budget))


def test_unknown_keys_are_named_with_the_known_ones() -> None:
    with pytest.raises(ParamsError, match=r"prune\.ffn_kep: unknown key.*ffn_keep"):
        parse(changed("prune.ffn_kep", 0.5))
    with pytest.raises(ParamsError, match=r"pruning: unknown key.*prune, quantize"):
        parse(changed("pruning.ffn_keep", 0.5))


def test_all_mistakes_are_told_at_once() -> None:
    broken = overlay(changed("prune.ffn_keep", 7), {"seed": -1})
    with pytest.raises(ParamsError) as caught:
        parse(broken)
    assert "seed" in str(caught.value)
    assert "prune.ffn_keep" in str(caught.value)


def test_params_cannot_be_changed() -> None:
    params = load(ROOT / "params.yaml")
    with pytest.raises(ValidationError):
        params.prune.ffn_keep = 0.1  # type: ignore[misc]


def test_yaml_floats_without_a_dot_are_numbers() -> None:
    assert parse(changed("teacher.training.learning_rate", "2e-5")) == parse(
        changed("teacher.training.learning_rate", 2.0e-5)
    )
    for key in ("distill.alpha_end", "exits.confidence"):
        assert parse(changed(key, "5e-1")) == parse(changed(key, 0.5))
    assert parse(changed("exits.confidence", "auto")).exits.confidence == "auto"


def test_every_key_says_what_it_means() -> None:
    """Each field has a docstring, or a name and a type that need none."""
    plain = {"name", "version", "member", "enabled", "epochs", "batch_size", "text_column",
             "label_column", "trim", "per_channel", "package", "hub", "training", "vocabulary",
             "source", "stage_drop", "max_drop", "max_macro_f1_drop", "max_ece", "alpha",
             "temperature", "train", "distill", "prune", "finetune", "sha256",
             "augment", "student", "layers", "heads", "ffn", "pattern", "budget", "sparsity",
             "swap", "fresh", "elsewhere", "calibration", "method", "aware",
             "licences"}  # fmt: skip
    for section in vars(schema).values():
        if isinstance(section, type) and issubclass(section, BaseModel):
            if section.__name__ in ("Params", "Section", "BaseModel"):
                continue
            for name, field in section.model_fields.items():
                assert field.description or name in plain, f"{section.__name__}.{name}"


@pytest.mark.parametrize("text", ["seed", "=3", ""])
def test_set_needs_a_key_and_a_value(text: str) -> None:
    with pytest.raises(ParamsError, match=r"section\.key=value"):
        assignment(text)


def test_set_reads_yaml() -> None:
    assert assignment("distill.layers=[0, 2]") == {"distill": {"layers": [0, 2]}}
    assert assignment("release.name=a=b") == {"release": {"name": "a=b"}}
    assert assignment(f"teacher.package.sha256={'0' * 64}") == {
        "teacher": {"package": {"sha256": "0" * 64}}
    }
    assert assignment("release.name=") == {"release": {"name": ""}}
    assert assignment("data.label_column=1") == {"data": {"label_column": "1"}}
    assert assignment("gate.max_drop=1e0") == {"gate": {"max_drop": "1e0"}}


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"a: [", "no YAML"), (b"- 1\n", "expected a mapping"), (b"\xff\xfe\xfa", "no YAML")],
)
def test_unreadable_files_are_told(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ParamsError, match=said):
        load(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match="no such file"):
        load(tmp_path / "absent.yaml")


TREES = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


@given(TREES, TREES)
def test_overlay_lets_the_upper_win_and_keeps_the_rest(
    base: dict[str, Any], over: dict[str, Any]
) -> None:
    merged = overlay(base, over)
    assert overlay(merged, over) == merged
    assert set(merged) == set(base) | set(over)
    for key, value in over.items():
        if not isinstance(value, dict):
            assert merged[key] == value


def test_fingerprint_ignores_order_and_sees_values() -> None:
    params = load(ROOT / "params.yaml")
    reordered = parse(dict(reversed(list(yaml.safe_load(yaml.safe_dump(RAW)).items()))))
    assert fingerprint(params) == fingerprint(reordered)
    assert fingerprint(params) != fingerprint(parse(changed("seed", 14)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.text_column=body", "data.label_column=body"], r"data\.label_column: found 'body'"),
        (["evaluation.slices=[a, b, a]"], r"evaluation\.slices: found .* expected each once"),
    ],
)
def test_columns_that_are_named_twice(settings: list[str], said: str) -> None:
    content = read_yaml(ROOT / "params.yaml")
    for setting in settings:
        content = overlay(content, assignment(setting))
    with pytest.raises(ParamsError, match=said):
        parse(content)
