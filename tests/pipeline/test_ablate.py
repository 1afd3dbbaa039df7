"""`stillroom ablate` on the smoke recipe: real runs, one technique, one seed."""

from __future__ import annotations

import json

import jsonschema
import pytest

from tests.conftest import ROOT, SMOKE, Run

pytestmark = pytest.mark.slow
ABLATE = ("ablate", "--recipe", "smoke", "--technique", "int8", "--seeds", "1")


def test_int8_is_worth_bytes(smoke: Run) -> None:
    shell = smoke.shell
    page, out = shell.home / "page.md", shell.home / "report"
    page.write_text("# page\n<!-- ablation-smoke:begin -->\n<!-- ablation-smoke:end -->\nend\n")
    before = shell.stillroom("status", "--model", "smoke", "--json").json

    done = shell.stillroom(*ABLATE, "--out", str(out), "--write", str(page), "--json")
    assert done.code == 0, done.err
    report = done.json
    jsonschema.validate(
        report, json.loads((ROOT / "infra/schemas/ablation.schema.json").read_text("utf-8"))
    )
    assert report["complete"]
    (full,), (int8,) = report["full"]["runs"], report["techniques"]
    assert int8["name"] == "int8"
    assert 2 < int8["smaller"]["mean"] < 5
    assert int8["points"]["low"] is None, "one seed has no interval"
    assert full["file_bytes"] * int8["smaller"]["mean"] == pytest.approx(int8["file_bytes"])
    assert "1 of 2: the full recipe, seed 0" in done.err
    assert "2 of 2: without int8, seed 0, about" in done.err

    # as `compress` says it of the same workspace
    there = shell.home / "workspaces" / full["workspace"]
    served = json.loads((there / "metrics/quantize.json").read_text("utf-8"))
    assert full["quality"] == served["validation"]["accuracy"]
    assert full["file_bytes"] == served["file_bytes"]

    # students are shared: the teacher and its student were trained once, by the recipe's run
    theirs = [shell.home / "workspaces" / one["runs"][0]["workspace"] for one in (report["full"],
              int8)]  # fmt: skip
    for stage in ("baseline", "distill", "finetune"):
        started = {
            json.loads((root / f"metrics/{stage}.runtime.json").read_text("utf-8"))["started_at"]
            for root in (smoke.workspace, *theirs)
        }
        assert len(started) == 1, f"{stage} ran again"

    assert shell.stillroom("status", "--model", "smoke", "--json").json == before
    aside = shell.stillroom("status", "--model", "ablation-smoke", "--json").json
    assert aside["champion"] is None, "nothing is promoted"

    assert json.loads((out / "ablation.json").read_text("utf-8")) == report
    assert "| int8 |" in (out / "ablation.md").read_text("utf-8")
    assert (out / "ablation.png").stat().st_size > 5000
    assert "| int8 |" in page.read_text("utf-8")
    assert page.read_text("utf-8").endswith("<!-- ablation-smoke:end -->\nend\n")


def test_again_there_is_nothing_to_do(smoke: Run) -> None:
    out = smoke.shell.home / "claim"
    words = ("ablate", "--recipe", "smoke", "--technique", "none", "--out", str(out), "--json")
    first = smoke.shell.stillroom(*words)
    assert first.code == 0, first.err
    assert first.json["techniques"] == []
    assert first.json["full"]["retained"]["n"] == 1
    again = smoke.shell.stillroom(*words)
    assert again.json == first.json, "timings included: nothing was measured again"
    said = json.loads((out / "logs" / "full-0.json").read_text("utf-8"))
    assert said["stages_run"] == []
    assert not (out / "ablation.png").exists()


def test_a_recipe_that_a_stage_limit_stops_has_nothing_to_compare(smoke: Run) -> None:
    limit = ("--set", "gate.stage_drop.prune=0.0", "--set", "prune.importance=random")
    done = smoke.shell.stillroom("ablate", *SMOKE[1:], *limit, "--technique", "int8", "--json")
    assert done.code == 3
    assert done.out == ""
    assert "no figures to compare with: prune: accuracy on validation" in done.err
    assert "Traceback" not in done.err
