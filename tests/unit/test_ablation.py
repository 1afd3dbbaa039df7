"""An ablation: which runs it is made of, what their figures say, and what is written of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from scipy import stats

from flows import ablate
from flows.ablation_plan import (
    FULL,
    Asked,
    Job,
    deciding_params,
    dry,
    first_changed,
    lifted,
    plan,
    remaining_s,
    seeds_of,
    source_layers,
)
from flows.console import Progress
from flows.workspace import Workspace, resolve
from tasks.errors import UnavailableError, UsageError
from tasks.evaluation.ablation import (
    Figures,
    Run,
    Variant,
    ablation,
    geometric,
    headline,
    page_markdown,
    spread,
    table_markdown,
)
from tasks.evaluation.ablation_plot import bar, plot_ablation, saved
from tasks.evaluation.readme import write_result, write_section
from tasks.evaluation.techniques import BY_NAME, TECHNIQUES, check_names, switchable
from tasks.params import assignment, overlay, parse, read_yaml
from tasks.schema import Params
from tests.unit.test_report import run as summary_of_a_run

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [None, *sorted(path.stem for path in (ROOT / "infra" / "recipes").glob("*.yaml"))]
SCHEMA = json.loads((ROOT / "infra/schemas/ablation.schema.json").read_text("utf-8"))
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"])


def params(*settings: str) -> Params:
    content = read_yaml(ROOT / "params.yaml")
    for text in settings:
        content = overlay(content, assignment(text))
    return parse(content)


# --- techniques ---------------------------------------------------------------------------

EVERYTHING = (
    "teach.augment.copies=2", "data.unlabelled=some/texts.csv",
    "data.package.unlabelled=[pkg/texts.tsv]", "teach.teachers=some/teachers",
    "teach.second.enabled=true", "teach.writer.enabled=true", "distill.student.source=package",
    "teacher.package.name=another",
    "distill.states=1.0", "distill.attention=1.0", "finetune.embeddings=0.5",
    "finetune.contrastive=0.1", "distill.growth=0.5", "distill.alpha_end=0.0",
    "distill.students=3", "prune.hidden_keep=0.5",
    "prune.drop_layers=1", "prune.scope=global", "prune.rounds=3", "prune.embedding_rank=64",
    "prune.sparsity.method=wanda", "finetune.rewind=true", "exits.layers=[1]",
    "finetune.training.patience=2",
)  # fmt: skip


def off(name: str) -> tuple[str, ...]:
    return tuple(text.replace("{all_layers}", "[0, 1, 2, 3, 4, 5]") for text in BY_NAME[name].off)


@pytest.mark.parametrize(
    "name", [t.name for t in TECHNIQUES if t.name not in ("layers", "assistants")]
)
def test_what_switches_a_technique_off_does_that_and_leaves_the_others_on(name: str) -> None:
    everything = EVERYTHING
    if name == "budget":  # which plans no channels, and each layer
        everything = (*EVERYTHING, "prune.hidden_keep=1.0", "prune.scope=layer",
                      "prune.budget.bytes=4000000")  # fmt: skip
    if name == "aware":  # which trains one model, not a chain of stages
        everything = (*EVERYTHING, "exits.layers=[]", "quantize.aware.mode=always")
    technique, before = BY_NAME[name], params(*everything)
    assert technique.on(before)
    after = params(*everything, *off(name))
    assert not technique.on(after)
    lost = {t.name for t in TECHNIQUES if t.on(before) and not t.on(after)}
    depends = {
        "soft-labels": {"annealing"}, "hard-labels": {"annealing"},
        "annealing": set(), "budget": {"importance"}, "int8": {"int8-embeddings", "per-channel"},
        "recovery": {"rewinding", "early-stopping"},
    }  # fmt: skip
    assert lost - {name} <= depends.get(name, set())


def test_without_int8_nothing_is_trained_for_it() -> None:
    trained = ("exits.layers=[]", "quantize.aware.mode=always")
    assert BY_NAME["aware"].on(params(*trained))
    assert not BY_NAME["aware"].on(params(*trained, *off("int8")))
    assert not BY_NAME["aware"].on(params("quantize.aware.mode=auto")), "it may not come to it"


def test_nothing_is_on_when_everything_is_off() -> None:
    settings = [text for t in TECHNIQUES if t.name != "hard-labels" for text in off(t.name)]
    found, left_out = switchable(params(*EVERYTHING, *settings), (), 6)
    assert [technique.name for technique, _ in found] == ["hard-labels"], "alpha is 1 or 0"
    assert left_out == {}


def test_a_packages_texts_count_where_they_are_fetched() -> None:
    on, texts = BY_NAME["unlabelled"].on, "data.package.unlabelled=[pkg/texts.tsv]"
    assert on(params(texts))
    assert not on(params(texts, "data.source=files"))
    assert on(params("data.source=files", "data.unlabelled=some/texts.csv"))


def test_a_term_counts_where_its_stage_trains() -> None:
    on = BY_NAME["states"].on
    assert not on(params("finetune.states=1.0", "finetune.enabled=false"))
    assert on(params("finetune.states=1.0", "finetune.enabled=false", "prune.rounds=2"))
    assert not on(params("distill.states=1.0", "distill.enabled=false"))
    sparse = ("finetune.enabled=false", "prune.sparsity.method=magnitude", "finetune.alpha=0.0",
              "distill.alpha=0.0")  # fmt: skip
    assert on(params("finetune.states=1.0", *sparse)), "prune trains by finetune's objective"
    assert BY_NAME["hard-labels"].on(params(*sparse, "finetune.alpha_end=1.0"))
    assert BY_NAME["annealing"].on(params(*sparse, "finetune.alpha_end=1.0"))


def test_a_writer_of_ones_own_is_switched_off_with_its_source() -> None:
    own = ("teach.writer.enabled=true", "teach.writer.source=path")
    assert not BY_NAME["writer"].on(params(*own, *off("writer")))


def test_a_schedule_that_ends_at_zero_has_soft_labels() -> None:
    hard = ("distill.alpha=1.0", "finetune.alpha=1.0")
    assert not BY_NAME["soft-labels"].on(params(*hard))
    assert BY_NAME["soft-labels"].on(params(*hard, "distill.alpha_end=0.0"))


def test_a_budget_takes_the_place_of_the_shares() -> None:
    names = {t.name for t in TECHNIQUES if t.on(params("prune.budget.latency_ms=0.5"))}
    assert "budget" in names
    assert not names & {"ffn", "heads"}


def test_layers_need_a_count() -> None:
    shipped = params("distill.layers=[0, 2, 5]")
    found, left_out = switchable(shipped, ("layers",), None)
    assert found == []
    assert "before fetch" in left_out["layers"]
    found, left_out = switchable(shipped, (), 6)
    every = "distill.layers=[0, 1, 2, 3, 4, 5]"
    assert {t.name: words for t, words in found}["layers"] == (every,)
    assert left_out == {}
    found, left_out = switchable(shipped, (), 3)
    assert "layers" not in {t.name for t, _ in found} | set(left_out), "an off one is not listed"
    helped = shipped.model_copy(
        update={"distill": shipped.distill.model_copy(update={"assistants": ((0, 1, 3, 5),)})}
    )
    (_, words), *_ = switchable(helped, ("layers",), 6)[0]
    assert words == (every, "distill.assistants=[]"), "nothing lies between the two any more"
    assert BY_NAME["assistants"].on(helped)
    assert not BY_NAME["assistants"].on(params(*off("assistants")))
    assert "all 3 layers" in switchable(shipped, ("layers",), 3)[1]["layers"]


def test_names_that_are_not_known_or_not_on() -> None:
    check_names(["none", "int8"], params())
    with pytest.raises(UsageError, match=r"found 'int4', expected one of .*int8.*none"):
        check_names(["int4"], params())
    with pytest.raises(UsageError, match="states is not on in this recipe"):
        check_names(["states"], params("distill.states=0.0", "finetune.states=0.0"))


# --- which runs ---------------------------------------------------------------------------


def asked(recipe: str | None = None, *wanted: str, seeds: int = 1) -> Asked:
    return Asked(recipe, (), seeds, wanted, "validation")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_dry_run_lists_runs_that_resolve(recipe: str | None) -> None:
    recipe_run = resolve(recipe)
    found = dry(asked(recipe, seeds=2), recipe_run)
    own = recipe_run.params.student_seed
    assert {row["seed"] for row in found["runs"]} == {own, own + 1}
    per_seed = [row["technique"] for row in found["runs"] if row["seed"] == own]
    assert per_seed[0] == FULL
    assert {"int8", "soft-labels"} <= set(per_seed)
    assert len({row["workspace"] for row in found["runs"]}) == len(found["runs"])
    assert all(row["command"].startswith("stillroom compress ") for row in found["runs"])
    starts = [STAGES.index(row["from"]) for row in found["runs"][1 : len(per_seed)]]
    assert starts == sorted(starts, reverse=True), "what is cheapest comes first"


def test_variants_keep_the_registry_of_the_model_clean_and_differ_in_one_technique() -> None:
    recipe_run = resolve("smoke")
    planned = plan(asked("smoke"), recipe_run, recipe_run.params.student_seed)
    for job in (planned.full, *planned.variants):
        theirs = job.workspace.params
        assert theirs.release.name == "ablation-smoke"
        assert theirs.evaluation.energy_seconds == 0
        assert theirs.evaluation.lengths == ()
        assert theirs.teacher == recipe_run.params.teacher
        assert job.workspace.mirror
    (int8,) = (job for job in planned.variants if job.name == "int8")
    assert int8.first == "quantize"
    full = planned.full.workspace.params
    assert int8.workspace.params == full.model_copy(
        update={"quantize": full.quantize.model_copy(update={"scheme": "none"})}
    )


def test_limits_are_lifted_where_a_stage_changes_and_kept_before() -> None:
    recipe_run = resolve(None, ["prune.rounds=1", "prune.sparsity.method=none"])
    planned = plan(
        Asked(None, ("prune.rounds=1", "prune.sparsity.method=none"), 1, (), "validation"),
        recipe_run, recipe_run.params.student_seed,
    )  # fmt: skip
    kept = recipe_run.params.gate.stage_drop
    drops = {job.name: job.workspace.params.gate.stage_drop for job in planned.variants}
    assert planned.full.workspace.params.gate.stage_drop == kept
    assert drops["int8"] == kept
    assert drops["ffn"] == kept.model_copy(update={"prune": 100.0, "finetune": 100.0})
    assert drops["recovery"] == kept.model_copy(update={"finetune": 100.0})
    assert drops["vocabulary"].model_dump() == dict.fromkeys(("distill", "prune", "finetune"), 100)


def test_another_seed_has_one_set_of_limits_so_that_its_runs_share_their_stages() -> None:
    recipe_run = resolve("smoke")
    planned = plan(asked("smoke", seeds=2), recipe_run, recipe_run.params.student_seed + 1)
    for job in (planned.full, *planned.variants):
        assert job.workspace.params.student_seed == recipe_run.params.student_seed + 1
        assert job.workspace.params.gate.stage_drop.finetune == 100


def test_what_changes_first() -> None:
    before, after = params(), params("quantize.scheme=none")
    keys = deciding_params(before)
    assert first_changed(keys, before, after) == "quantize"
    for rounds, first in ((1, "finetune"), (2, "prune")):  # which then trains, too
        one = params(f"prune.rounds={rounds}")
        other = params(f"prune.rounds={rounds}", "finetune.alpha=0.5")
        assert first_changed(deciding_params(one), one, other) == first
    assert first_changed(keys, before, before) == STAGES[-1]
    assert lifted(STAGES, "quantize") == ()
    assert lifted(STAGES, "prune") == ("gate.stage_drop.prune=100.0",
                                       "gate.stage_drop.finetune=100.0")  # fmt: skip


def test_layers_are_counted_in_the_model_that_the_recipe_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_run = resolve(
        "headline", ["distill.student.source=teacher", "teach.second.enabled=false"]
    )
    there = Workspace(tmp_path, recipe_run.params, "there", recipe_run.content, mirror=True)
    monkeypatch.setattr("tasks.home.CHECKOUT", tmp_path)
    elsewhere = Workspace(tmp_path / "no", recipe_run.params, "no", recipe_run.content, mirror=True)
    assert source_layers(there, elsewhere) is None
    (tmp_path / "data/pretrained").mkdir(parents=True)
    (tmp_path / "data/pretrained/config.json").write_text('{"num_hidden_layers": 12}')
    assert source_layers(there, elsewhere) is None, "nobody knows whose it is"
    lock = {
        "teacher.source": "package",
        "teacher.package": recipe_run.content["teacher"]["package"],
    }

    def write(fetch: dict[str, Any]) -> None:
        text = yaml.safe_dump({"stages": {"fetch": {"params": {"params.yaml": fetch}}}})
        (tmp_path / "dvc.lock").write_text(text)

    write(lock)
    assert source_layers(there, elsewhere) == 12
    write({**lock, "teacher.package": {"name": "another"}})
    assert source_layers(there, elsewhere) is None


def test_what_remains() -> None:
    work = {"a": 100.0, "b": 10.0, "c": 1.0}
    assert remaining_s(["a", "c"], ["a", "b", "c"], work, 5.0) == 100 + 10 + 1 + 1 + 2 * 5
    assert remaining_s([], ["a"], work, 5.0) == 0
    assert [ablate.duration(s) for s in (10, 150, 5940, 7200)] == ["1 min", "2 min", "99 min",
                                                                   "2.0 h"]  # fmt: skip


# --- figures ------------------------------------------------------------------------------


def figures(quality: float, size: int = 4_000_000, p50: float = 0.4, teacher: float = 8.0,
            ) -> Figures:  # fmt: skip
    return Figures(quality, 0.93, size, 88_000_000, p50, teacher, n=1000)


def test_the_t_interval_by_hand() -> None:
    found = spread([0.90, 0.92, 0.94])
    assert found is not None
    # sd 0.02; t(0.975; 2) = 4.302653; half = 4.302653 · 0.02 / √3 = 0.0496828
    assert found.mean == pytest.approx(0.92)
    assert found.sd == pytest.approx(0.02)
    assert found.low == pytest.approx(0.92 - 0.0496828, abs=1e-6)
    assert found.high == pytest.approx(0.92 + 0.0496828, abs=1e-6)
    two = spread([1.0, 3.0])  # sd √2, half = 12.706205 · √2 / √2
    assert two is not None
    assert two.low == pytest.approx(2 - 12.706205)
    assert two.high == pytest.approx(2 + 12.706205)
    one = spread([5.0])
    assert one is not None
    assert (one.mean, one.sd, one.low, one.high, one.n) == (5.0, None, None, None, 1)
    assert spread([]) is None


def test_the_t_interval_agrees_with_scipy() -> None:
    values = [0.913, 0.921, 0.9187, 0.925, 0.9104]
    low, high = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    found = spread(values)
    assert found is not None
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)


def test_ratios_are_averaged_on_logarithms() -> None:
    found = geometric([2.0, 0.5])
    assert found is not None
    assert found.mean == pytest.approx(1.0)
    assert found.low is not None
    assert found.high == pytest.approx(1 / found.low)
    assert found.sd == pytest.approx(math.exp(math.log(2) * math.sqrt(2)))


def sample(*, complete: bool = True) -> dict[str, Any]:
    full = [Run(0, "passed", figures(0.92), workspace="f0"),
            Run(1, "passed", figures(0.93), workspace="f1")]  # fmt: skip
    int8 = Variant("int8", "int8 weights: fp32", ("quantize.scheme=none",), (
        Run(0, "refused", figures(0.925, 16_000_000, 1.0, 10.0), "by the gate, on test: bytes"),
        Run(1, "passed", figures(0.933, 16_000_000, 0.8)),
    ))  # fmt: skip
    heads = Variant("heads", "head pruning: all stay", ("prune.heads_keep=1.0",), (
        Run(0, "passed", figures(0.921)), Run(1, "failed", note="prune: no memory"),
    ))  # fmt: skip
    rounds = Variant("rounds", "a single shot", ("prune.rounds=1",), (
        Run(0, "stopped", note="prune: accuracy on validation is 0.1"),
    ))  # fmt: skip
    return ablation(full, [heads, rounds, int8], recipe="smoke", overrides=["seed=1"],
                    split="validation", seeds=[0, 1], complete=complete,
                    left_out={"layers": "not counted"})  # fmt: skip


def test_differences_are_paired_seed_by_seed() -> None:
    heads, rounds, int8 = sample()["techniques"]
    # 100 · (0.92 − 0.925) = −0.5 and 100 · (0.93 − 0.933) = −0.3: mean −0.4, sd 0.141421
    assert int8["points"]["mean"] == pytest.approx(-0.4)
    assert int8["points"]["high"] == pytest.approx(-0.4 + 12.706205 * 0.1)
    assert (int8["with"], int8["without"]) == (pytest.approx(0.925), pytest.approx(0.929))
    assert int8["smaller"]["mean"] == pytest.approx(4.0)
    # speeds with: 20 and 20; without: 10 and 10; the two teachers differ, the ratio does not
    assert int8["faster"]["mean"] == pytest.approx(2.0)
    assert int8["faster"]["low"] == pytest.approx(2.0)
    assert (heads["with"], heads["points"]["mean"]) == (0.92, pytest.approx(-0.1))
    assert heads["points"]["low"] is None
    assert (rounds["points"], rounds["without"], rounds["file_bytes"]) == (None, None, None)


def test_the_full_recipe_is_the_headline() -> None:
    report = sample()
    full = report["full"]
    assert full["retained"]["mean"] == pytest.approx((0.92 + 0.93) / 2 / 0.93)
    assert full["size"]["mean"] == pytest.approx(22.0)
    assert report["n"] == 1000
    assert headline(report) == (
        "Full recipe, mean of 2 seeds: 99.46 % (sd 0.76, 95 %: 92.63 to 106.29) of the teacher's "
        "accuracy retained on validation, 22.0× (sd 0.0, 95 %: 22.0 to 22.0) smaller, "
        "20.0× (sd 0.0, 95 %: 20.0 to 20.0) faster at p50."
    )
    alone = ablation([Run(0, "passed", figures(0.92))], [], recipe=None, overrides=[],
                     split="test", seeds=[0])  # fmt: skip
    assert "one seed: 98.92 %" in headline(alone)
    assert "Worth" in table_markdown(alone)


def test_the_report_fits_its_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$id"] == "ablation.schema.json"
    nothing = ablation([], [], recipe=None, overrides=[], split="test", seeds=[3], complete=False)
    for report in (sample(), sample(complete=False), nothing):
        jsonschema.validate(json.loads(json.dumps(report, allow_nan=False)), SCHEMA)
    for broken in (
        {**sample(), "surprise": 1},
        {**sample(), "split": "train"},
        {key: value for key, value in sample().items() if key != "full"},
        {**sample(), "techniques": [{**sample()["techniques"][0], "off": []}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


def test_the_table_starts_with_the_full_recipe_and_has_every_technique() -> None:
    lines = [line for line in table_markdown(sample()).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["nothing: the full recipe", "2", "92.50", "–", "–", "4,000,000", "–",
                        "0.400", "20.0", "–"]  # fmt: skip
    assert cells[3][:5] == ["heads", "1 of 2", "92.00", "92.10", "-0.10"]
    assert cells[4][:4] == ["rounds", "0 of 2", "–", "stopped"]
    assert cells[5] == ["int8", "2", "92.50", "92.90", "-0.40 (-1.67 to +0.87)", "16,000,000",
                        "4.00×", "0.900", "10.0", "2.00×"]  # fmt: skip
    assert {len(line) for line in cells} == {10}


def test_the_page_says_what_was_done_and_what_went_wrong() -> None:
    page = page_markdown(sample(complete=False))
    assert page.startswith("# What each technique is worth: smoke\n")
    assert "- `int8`: int8 weights: fp32. `quantize.scheme=none`" in page
    assert "- without `rounds`, seed 0: stopped: prune: accuracy on validation is 0.1" in page
    assert "- without `int8`, seed 0: refused: by the gate, on test: bytes" in page
    assert "1,000 validation texts" in page
    assert "Left out: layers (not counted)." in page
    assert "runs are missing" in page
    assert "runs are missing" not in page_markdown(sample())


def test_the_picture_is_stable(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "sub" / "two.png"
    assert plot_ablation(sample(), one)
    assert plot_ablation(sample(), two)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    other = sample()
    other["techniques"][0]["points"]["mean"] = 3.0
    plot_ablation(other, two)
    assert one.read_bytes() != two.read_bytes()
    nothing = ablation([], [], recipe=None, overrides=[], split="test", seeds=[0])
    assert not plot_ablation(nothing, tmp_path / "three.png")
    assert not (tmp_path / "three.png").exists()


def test_bars_have_the_ends_of_their_intervals() -> None:
    assert saved(4.0) == 75.0
    assert saved(0.5) == -100.0
    found = bar({"mean": 2.0, "low": 1.25, "high": 4.0}, saved)
    assert found == pytest.approx((50.0, 30.0, 25.0))  # 50 %, from 20 % to 75 %
    assert bar({"mean": 2.0, "low": None, "high": None}) == (2.0, 0.0, 0.0)


# --- reading runs, and what is written ----------------------------------------------------


def test_figures_are_of_the_split_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="found no figure"):
        ablate.measured(tmp_path, "test")
    summary = summary_of_a_run()
    (tmp_path / "reports").mkdir()
    (tmp_path / "metrics").mkdir()
    (tmp_path / "reports/summary.json").write_text(json.dumps(summary))
    contents: dict[str, Any] = {
        "quantize": {"validation": {"accuracy": 0.5}},
        "baseline": {"validation": {"accuracy": 0.8}},
        "prepare": {"rows": {"validation": 1000, "test": 3080}},
    }
    for name, content in contents.items():
        (tmp_path / f"metrics/{name}.json").write_text(json.dumps(content))
    test, validation = (ablate.measured(tmp_path, split) for split in ("test", "validation"))
    assert (test.quality, test.teacher_quality, test.n) == (0.9218, 0.9315, 3080)
    assert (validation.quality, validation.teacher_quality, validation.n) == (0.5, 0.8, 1000)
    for found in (test, validation):
        assert found.size == summary["ratios"]["size"]
        assert found.speed == summary["ratios"]["speed_p50"]
    assert validation.retained == 0.625


def test_a_run_that_cannot_start_hands_its_error_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real child process: `compress` refuses its params."""
    recipe_run = resolve("smoke")
    settings = ("data.max_rows=-1",)
    job = Job("int8", 4, settings, recipe_run, "quantize")
    run, error = ablate.attempt(job, asked("smoke"), tmp_path, Progress(to_stderr=True))
    assert (run.status, run.seed, run.figures) == ("failed", 4, None)
    assert isinstance(error, UsageError)
    assert error.message.startswith("without int8, seed 4: params: data.max_rows: found -1")
    assert "data.max_rows" in (tmp_path / "logs/int8-4.log").read_text()
    assert "data.max_rows" in capsys.readouterr().err


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="--split: found 'train'"):
        ablate.run("smoke", split="train")
    with pytest.raises(UsageError, match="int4"):
        ablate.run("smoke", techniques=["int4"])
    page = tmp_path / "page.md"
    page.write_text("# nothing\n")
    with pytest.raises(UsageError, match=r"found no place .*ablation-smoke:begin"):
        ablate.run("smoke", write=page)
    assert ablate.run("smoke", techniques=["none"], seeds=3, dry_run=True, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["technique"], row["seed"]) for row in found["runs"]] == [
        (FULL, 0), (FULL, 1), (FULL, 2)]  # fmt: skip
    assert ablate.run("smoke", techniques=["int8"], dry_run=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# full, seed 0")
    assert lines[3].startswith("stillroom compress --recipe smoke --set student_seed=0")
    assert "--set quantize.scheme=none" in lines[3]


def test_a_question_has_a_folder_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STILLROOM_HOME", str(tmp_path))
    recipe_run = resolve("smoke")
    first = ablate.default_out(asked("smoke", "int8", "ffn"), recipe_run)
    assert first.parent == tmp_path / "ablations"
    assert first.name.startswith("smoke-")
    assert ablate.default_out(asked("smoke", "ffn", "int8"), recipe_run) == first
    assert ablate.default_out(asked("smoke", "ffn", "int8", seeds=2), recipe_run) != first
    assert ablate.default_out(asked(None), resolve()).name.startswith("params-")


def test_a_section_of_a_page_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = (
        "a\n<!-- result:begin -->\nr\n<!-- result:end -->\n"
        "b\n<!-- ablation:begin -->\n{}\n<!-- ablation:end -->\nc\n"
    )
    page.write_text(text.format("old"))
    assert write_section(page, "ablation", "new")
    assert not write_section(page, "ablation", "new")
    assert page.read_text() == text.format("new")
    assert write_result(page, summary_of_a_run())
    assert "<!-- ablation:begin -->\nnew\n" in page.read_text()
    page.write_text(page.read_text() + "<!-- ablation:end -->\n")
    with pytest.raises(UsageError, match="once each"):
        write_section(page, "ablation", "new")
    with pytest.raises(UsageError, match="found no file"):
        write_section(tmp_path / "none.md", "ablation", "new")


def test_folds_take_the_place_of_seeds() -> None:
    overrides = ("data.folds=3",)
    recipe_run = resolve("smoke", overrides)
    asked = Asked("smoke", overrides, 1, ("none",), "validation")
    assert seeds_of(asked, recipe_run) == [0, 1, 2]
    planned = [plan(asked, recipe_run, fold).full for fold in range(3)]
    assert [job.workspace.params.data.fold for job in planned] == [0, 1, 2]
    assert [job.first for job in planned[1:]] == ["prepare", "prepare"]
    assert {job.workspace.params.student_seed for job in planned} == {
        recipe_run.params.student_seed
    }
    with pytest.raises(UsageError, match="expected one of the two"):
        seeds_of(Asked("smoke", overrides, 2, (), "validation"), recipe_run)
