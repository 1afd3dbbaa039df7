"""The report says what was measured, nothing more, and says so when it is bad news."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tasks.evaluation.energy import Energy
from tasks.evaluation.latency import ColdStart, LatencyRow, PairedRatio
from tasks.evaluation.pareto import pareto_front, plot_pareto
from tasks.evaluation.report import Details, render_markdown, render_terminal
from tasks.evaluation.statistics import ClassDrop, ClassDrops, Interval
from tasks.evaluation.summary import Row, beaten_by_linear, ratios, summary

GATE = {
    "passed": True,
    "checks": [
        {"metric": "drop", "kind": "max", "value": 0.97, "limit": 2.0, "passed": True},
        {"metric": "bytes", "kind": "max", "value": 4_560_000, "limit": 5_000_000, "passed": True},
        {"metric": "parity", "kind": "min", "value": None, "limit": 0.97, "passed": False},
    ],
    "artifact_sha256": "a" * 64,
    "detectable_drop": 1.1,
}
NOT_MEASURED = Energy(None, None, "not measured")


def row(stage: str, accuracy: float, size: int, p50: float | None, energy: Energy | None) -> Row:
    quality = {"accuracy": accuracy, "macro_f1": accuracy - 0.01, "nll": 0.3, "ece": 0.0234}
    if p50 is None:
        return Row(stage, quality, size, parameters=22_713_216)
    times = LatencyRow(p50, 1.5 * p50, 3 * p50, 1000 / p50)
    return Row(stage, quality, size, 22_713_216, 10**9, times, ColdStart(310.4, 10**8), energy)


def run(energy: bool = True, **change: Row) -> dict:
    def used(kwh: float) -> Energy:
        return Energy(kwh, 400 * kwh, "estimated") if energy else NOT_MEASURED

    rows = {
        "teacher": row("teacher", 0.9315, 91_200_000, 7.7, used(8e-6)),
        "linear": row("linear", 0.9107, 10_900_000, 0.62, used(6e-7)),
        "distill": row("distill", 0.924, 35_000_000, None, None),
        "deploy": row("deploy", 0.9218, 4_560_000, 0.385, used(4e-7)),
    } | change
    return summary(
        list(rows.values()),
        gate=GATE,
        n=3080,
        retained=Interval(0.9896, 0.984, 0.995),
        onnx_fp32_p50=3.85,
    )


def details(**change: object) -> Details:
    facts: dict = {
        "drop": Interval(0.97, 0.4, 1.5),
        "flip_rate": 0.0312,
        "detectable_drop": 1.1,
        "classes": ClassDrops(
            0.97, (ClassDrop(0, 40, 10.0, 7.0, 1.5), ClassDrop(1, 40, 20.0, 14.0, 4.2))
        ),
        "labels": ["lost|card", "pin"],
        "latency": {"teacher": {1: LatencyRow(7.7, 8, 9, 130), 32: LatencyRow(99, 101, 102, 323)}},
        "paired_speed": PairedRatio(19.8, 18.1, 21.4),
        "profile": "cpu-avx2",
    }
    return Details(**(facts | change))


def test_ratios_by_hand():
    assert run()["ratios"] == {
        "quality_retained": 0.9896,
        "quality_retained_ci95": [0.984, 0.995],
        "size": 20.0,
        "speed_p50": pytest.approx(20.0),
        "speed_p50_vs_onnx_fp32": pytest.approx(10.0),
        "energy": pytest.approx(20.0),
    }


def test_ratios_are_null_where_a_figure_is_missing():
    found = run(energy=False)["ratios"]
    assert found["energy"] is None
    assert found["speed_p50"] == pytest.approx(20.0)
    without = run(deploy=row("deploy", 0.92, 4_560_000, None, None))
    assert [without["ratios"][key] for key in ("speed_p50", "speed_p50_vs_onnx_fp32")] == [None] * 2
    nan = float("nan")
    stages = run()["stages"]
    found = ratios(stages[0], stages[-1], retained=Interval(nan, nan, nan), onnx_fp32_p50=None)
    assert found["quality_retained"] is found["quality_retained_ci95"] is None
    assert found["speed_p50_vs_onnx_fp32"] is None


def test_summary_is_plain_json_and_rows_hold_null_where_nothing_was_measured():
    found = run()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    distill = found["stages"][2]
    assert distill["latency_ms"] is distill["cold_start_ms"] is distill["energy_method"] is None
    assert found["stages"][0]["latency_ms"]["p95"] == pytest.approx(11.55)


def test_rows_out_of_order_are_refused():
    rows = [row("linear", 0.91, 1, 1.0, None), row("deploy", 0.92, 1, 1.0, None)]
    for wrong in (rows, rows[::-1], []):
        with pytest.raises(ValueError, match="expected from teacher to deploy"):
            summary(wrong, gate=GATE, n=1, retained=Interval(1, 1, 1), onnx_fp32_p50=None)


@pytest.mark.parametrize(
    ("accuracy", "size", "p50", "beaten"),
    [
        (0.9218, 4_560_000, 0.385, True),
        (0.9217, 4_560_000, 0.385, False),
        (0.9218, 4_560_001, 0.385, False),
        (0.9218, 4_560_000, 0.386, False),
        (0.95, 1, 0.1, True),
    ],
)
def test_a_student_beaten_on_all_axes_is_called_so(accuracy, size, p50, beaten):
    found = run(linear=row("linear", accuracy, size, p50, NOT_MEASURED))
    assert beaten_by_linear(found) is beaten
    assert ("not worth shipping" in render_markdown(found, details())) is beaten


def test_the_page_has_every_row_check_and_caveat():
    page = render_markdown(run(), details())
    assert (
        "| teacher | 93.15 | 92.15 | 0.023 | 91,200,000 | 7.70 | 11.6 | 23.1 | 8.00 estim" in page
    )
    assert "| distill | 92.40 | 91.40 | 0.023 | 35,000,000 | – | – | – | – |" in page
    assert "| drop | 0.9700 | ≤ 2.0000 | yes |" in page
    assert "| parity | – | ≥ 0.9700 | **no** |" in page
    assert "| teacher | 32 | 99.000 | 101.000 | 102.000 | 323 |" in page
    assert "Flips: 3.12 % of the texts" in page
    assert "0.97 points (95 % paired bootstrap: 0.40 to 1.50)" in page
    assert "power of 80 %: 1.10 points" in page
    assert "19.8× (quartiles 18.1 to 21.4)" in page
    assert page.index("| pin | 40 |") < page.index("| lost\\|card | 40 |")
    assert "its ratio repeats the speed ratio" in page
    assert "Nothing in this run ran on a GPU" in page
    assert "`cpu-avx2`" in page


def test_the_page_says_what_was_not_measured():
    page = render_markdown(
        run(energy=False),
        details(classes=ClassDrops(0.97, ()), latency={}, device="cuda", notes=["A note."]),
    )
    assert "Energy was not measured" in page
    assert "repeats the speed ratio" not in page
    assert "No class has rows enough" in page
    assert "## Batches" not in page
    assert "on a GPU" not in page
    assert page.endswith("- A note.\n")


def test_a_refused_candidate_is_called_so():
    found = copy.deepcopy(run())
    found["gate"]["passed"] = False
    assert "The candidate was **refused**" in render_markdown(found, details())
    assert "gate refused" in printed(found, 80)


def printed(found: dict, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_terminal(found))
    return console.export_text()


def test_the_terminal_table_fits_eighty_columns():
    said = printed(run(), 80)
    assert "…" not in said
    assert "91,200,000" in said
    assert "energy: estimated" in said
    assert "20.0× smaller" in said
    last = next(line for line in said.splitlines() if line.strip().startswith("deploy"))
    expected = "deploy 92.18 91.18 0.023 4,560,000 0.385 0.578 1.16 0.400"
    assert " ".join(last.split()) == expected
    middle = next(line for line in said.splitlines() if line.strip().startswith("distill"))
    assert middle.split()[-4:] == ["–"] * 4
    assert "energy: not measured" in printed(run(energy=False), 80)


def test_the_front_by_hand():
    points = [
        {"quality": 93.0, "bytes": 91.0},
        {"quality": 91.0, "bytes": 11.0},
        {"quality": 92.0, "bytes": 4.5},
        {"quality": 92.0, "bytes": 4.5},
        {"quality": 99.0, "bytes": None},
        {"quality": 99.0, "bytes": float("nan")},
    ]
    assert pareto_front(points, ["quality"], ["bytes"]) == [0, 2, 3]
    assert pareto_front([], ["quality"], ["bytes"]) == []


POINTS = st.lists(
    st.fixed_dictionaries({"a": st.integers(0, 6), "b": st.integers(0, 6), "c": st.integers(0, 6)}),
    max_size=14,
)


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points):
    def dominates(p: dict, q: dict) -> bool:
        as_good = p["a"] >= q["a"] and p["b"] <= q["b"] and p["c"] <= q["c"]
        return as_good and p != q

    front = pareto_front(points, ["a"], ["b", "c"])
    for index, point in enumerate(points):
        assert (index in front) == (not any(dominates(other, point) for other in points))


def test_the_picture_is_a_png_and_of_its_figures(tmp_path):
    plot_pareto(run(), tmp_path / "deep" / "a.png")
    plot_pareto(run(), tmp_path / "b.png")
    plot_pareto(run(deploy=row("deploy", 0.5, 4_560_000, 0.385, NOT_MEASURED)), tmp_path / "c.png")
    a, b, c = ((tmp_path / name).read_bytes() for name in ("deep/a.png", "b.png", "c.png"))
    assert a.startswith(b"\x89PNG")
    assert a == b != c


def test_a_picture_without_any_latency_can_be_drawn(tmp_path):
    bare = [row("teacher", 0.93, 100, None, None), row("deploy", 0.92, 10, None, None)]
    found = summary(bare, gate=GATE, n=1, retained=Interval(1, 1, 1), onnx_fp32_p50=None)
    plot_pareto(found, tmp_path / "bare.png")
    assert (tmp_path / "bare.png").stat().st_size > 5000
