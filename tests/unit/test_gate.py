"""The gate decides by figures alone, and what is not a figure never passes."""

import json
import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import GateRefused
from tasks.release.gate import Evidence, Verdict, judge, stage_limit
from tasks.schema import Gate, StageDrop

LIMITS = Gate(
    baseline_floor=0.9,
    stage_drop=StageDrop(distill=3.0, prune=60.0, finetune=2.0),
    max_drop=2.0,
    max_drop_upper95=3.5,
    max_macro_f1_drop=2.5,
    max_class_drop=10.0,
    class_min_rows=20,
    class_prior_rows=20.0,
    max_ece=0.1,
    max_bytes=5_000_000,
    min_parity=0.97,
)
GOOD = Evidence(
    drop=2.0,
    drop_upper95=3.5,
    macro_f1_drop=2.5,
    class_drop=10.0,
    ece=0.1,
    bytes=5_000_000,
    parity=0.97,
    artifact_sha256="a" * 64,
    detectable_drop=1.0,
)
JUDGED = [
    field.name
    for field in fields(Evidence)
    if field.name not in ("artifact_sha256", "detectable_drop")
]


def test_figures_at_their_limits_pass():
    verdict = judge(GOOD, LIMITS)
    assert verdict.passed
    assert verdict.failures == ()
    verdict.require()
    assert [check.metric for check in verdict.checks] == JUDGED
    assert [check.kind for check in verdict.checks] == ["max"] * 6 + ["min"]


@pytest.mark.parametrize("metric", JUDGED)
def test_each_figure_past_its_limit_fails_alone(metric):
    step = -0.001 if metric == "parity" else 1 if metric == "bytes" else 0.001
    verdict = judge(replace(GOOD, **{metric: getattr(GOOD, metric) + step}), LIMITS)
    assert not verdict.passed
    assert [check.metric for check in verdict.failures] == [metric]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", JUDGED)
def test_what_is_not_a_figure_fails_and_is_null(metric, value):
    verdict = judge(replace(GOOD, **{metric: value}), LIMITS)
    assert [check.metric for check in verdict.failures] == [metric]
    assert verdict.failures[0].value is None
    json.dumps(verdict.as_dict(), allow_nan=False)
    with pytest.raises(GateRefused, match=f"{metric}: found nothing"):
        verdict.require()


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 100))
def test_a_drop_passes_exactly_when_it_is_within(drop, limit):
    verdict = judge(replace(GOOD, drop=drop), LIMITS.model_copy(update={"max_drop": limit}))
    assert verdict.passed == (math.isfinite(drop) and round(drop, 9) <= limit)


def test_the_refusal_names_check_value_limit_and_command():
    verdict = judge(replace(GOOD, drop=4.25, bytes=6_000_000, parity=0.5), LIMITS)
    with pytest.raises(GateRefused) as caught:
        verdict.require()
    said = str(caught.value)
    assert "drop: found 4.25, gate.max_drop allows at most 2" in said
    assert "bytes: found 6,000,000, gate.max_bytes allows at most 5,000,000" in said
    assert "parity: found 0.5, gate.min_parity allows at least 0.97" in said
    assert "ece" not in said
    assert caught.value.exit_code == 3
    assert caught.value.next_command


def test_every_named_limit_is_a_key_of_params():
    for check in judge(GOOD, LIMITS).checks:
        assert f"{check.kind}_{check.metric}" in Gate.model_fields


def test_the_detectable_drop_informs_and_decides_nothing():
    assert judge(replace(GOOD, detectable_drop=99.0), LIMITS).passed
    verdict = judge(replace(GOOD, detectable_drop=math.nan), LIMITS)
    assert verdict.passed
    assert verdict.as_dict()["detectable_drop"] is None


def test_a_verdict_survives_json():
    verdict = judge(replace(GOOD, drop=math.nan), LIMITS)
    assert Verdict.from_dict(json.loads(json.dumps(verdict.as_dict()))) == verdict


def test_a_record_that_only_claims_to_have_passed_has_not():
    record = judge(replace(GOOD, drop=9.0), LIMITS).as_dict() | {"passed": True}
    assert not Verdict.from_dict(record).passed
    empty = {**record, "checks": []}
    assert not Verdict.from_dict(empty).passed
    with pytest.raises(GateRefused, match="no check was made"):
        Verdict.from_dict(empty).require()


def test_a_limit_edited_in_the_record_does_not_reach_the_limits():
    assert judge(GOOD, LIMITS).as_dict()["checks"][0]["limit"] == LIMITS.max_drop


def test_stage_limit_returns_a_tolerable_drop():
    assert stage_limit("distill", {"accuracy": 0.93}, {"accuracy": 0.91}, 3.0) == pytest.approx(2)
    # 100 * (0.93 - 0.91) is 2.0000000000000018
    assert stage_limit("finetune", {"accuracy": 0.93}, {"accuracy": 0.91}, 2.0)
    assert stage_limit("prune", {"accuracy": 0.93}, {"accuracy": 0.95}, 60.0) < 0


def test_stage_limit_names_stage_value_limit_and_command():
    with pytest.raises(GateRefused) as caught:
        stage_limit("finetune", {"accuracy": 0.93}, {"accuracy": 0.88}, 2.0)
    said = str(caught.value)
    assert "finetune: accuracy on validation is 0.8800, the teacher's 0.9300" in said
    assert "a drop of 5.00 points, gate.stage_drop.finetune allows at most 2" in said
    assert caught.value.next_command == "stillroom compress --set gate.stage_drop.finetune=5"


@pytest.mark.parametrize(
    ("teacher", "found"),
    [({}, {"accuracy": 0.9}), ({"accuracy": 0.9}, {}), ({"accuracy": 0.9}, {"accuracy": math.nan})],
)
def test_stage_limit_refuses_what_is_no_figure(teacher, found):
    for stage, key in (("prune", "prune.importance"), ("distill", "distill.training.precision")):
        with pytest.raises(GateRefused) as caught:
            stage_limit(stage, teacher, found, 50.0)
        assert key in str(caught.value.next_command)
