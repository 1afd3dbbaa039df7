"""Charts put figures where they belong, and the page holds what was measured and nothing else."""

import re
from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
import pytest

from tasks.evaluation import comparison
from tasks.evaluation.charts import (
    Bar,
    Point,
    Scale,
    bars,
    linear_ticks,
    log_ticks,
    place_labels,
    reliability,
    scatter,
)
from tasks.evaluation.evidence_markdown import sections
from tasks.evaluation.figures import energy, percent, signed, significant, size, times
from tasks.evaluation.page import render_page
from tasks.evaluation.page_style import STYLE
from tasks.evaluation.quality import answered
from tests.report_example import BREAKOUT, rich_summary

VOID = {"meta", "link", "br", "img", "wbr"}


class Markup(HTMLParser):
    """Elements in order, whether all are closed, ids, links and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attrs}
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("href", "src") if name in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


# --- scales and ticks ------------------------------------------------------------------


def test_a_log_scale_puts_a_decade_at_equal_lengths() -> None:
    scale = Scale(1, 100, 30, 330, log=True)
    assert [scale(v) for v in (1, 10, 100)] == pytest.approx([30, 180, 330])
    assert scale(2) == pytest.approx(30 + 300 * 0.30103 / 2, abs=1e-3)
    assert Scale(90, 95, 200, 100)(92) == pytest.approx(160)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (2.1, 182, [5, 10, 20, 50, 100]),
        (0.19, 18.2, [0.2, 0.5, 1, 2, 5, 10]),
        (0.5, 6000, [1, 10, 100, 1000]),
    ],
)
def test_log_ticks_are_round_and_few(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == ticks


def test_linear_ticks_are_multiples_of_a_round_step() -> None:
    assert linear_ticks(90.6, 92.9) == [91, 91.5, 92, 92.5]
    assert linear_ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert linear_ticks(-3, 3) == [-2, 0, 2]


@pytest.mark.parametrize("ticks", [log_ticks, linear_ticks])
def test_an_empty_range_is_refused(ticks: Callable[[float, float], list[float]]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ticks(5.0, 5.0)


# --- charts ----------------------------------------------------------------------------


def test_points_and_front_stand_where_their_figures_say() -> None:
    points = [
        Point(("deploy",), 1, 92, "candidate", front=True),
        Point(("distill",), 10, 92, "stage"),
        Point(("teacher",), 100, 94, "teacher", front=True),
    ]
    drawing = scatter(points, title="t", x_label="MB", y_label="%", x_text=str, foot=90)
    # x: 0.5 to 200, so that 10 is in the middle of 34 to 320; y: 90 to 94.48 on 226 to 26
    assert 'd="M172 136.7a5 5' in drawing
    assert 'class="front" d="M67.1 136.7H286.9V47.4H320"' in drawing
    assert "distill: 92.00 %, 10" in drawing


def test_what_is_far_below_stands_at_the_foot_and_says_its_figure() -> None:
    points = [Point(("a",), 1, 92, "stage", front=True), Point(("b",), 9, 40, "stage", below=True)]
    drawing = scatter(points, title="t", x_label="MB", y_label="%", x_text=str, foot=90)
    assert ">b 40.0 %<" in drawing
    ys = [float(y) for y in re.findall(r'class="dot stage" d="M[\d.]+ ([\d.]+)', drawing)]
    assert max(ys) == 226 + 6


def test_labels_cover_neither_each_other_nor_points_nor_ticks() -> None:
    places = [(100.0, 215.0), (112.0, 215.0), (130.0, 215.0), (5.0, 100.0)]
    found = place_labels(places, [60.0] * 4, (0.0, 330.0), floor=226.0)
    for index, (x, y) in enumerate(found):
        assert 30 <= x <= 300
        assert y <= 226
        for other_x, other_y in found[:index]:
            assert abs(x - other_x) >= 60 or abs(y - other_y) >= 13
        assert not any(abs(x - px) < 36 and y - 16 < py < y + 9 for px, py in places)


def test_bars_start_at_zero_and_go_both_ways() -> None:
    rows = [Bar("more", (10,)), Bar("less", (-5,)), Bar("none", (None,))]
    drawing = bars(rows, title="t", kinds=["stage"], text=lambda v: f"{v:g}")
    # room for two characters at each side: -5 at 20.4, 10 at 311.6, zero between
    assert 'x="117.5" y="16" width="194.1"' in drawing
    assert 'x="20.4" y="54" width="97.1"' in drawing
    assert drawing.count("<rect") == 2


def test_reliability_draws_how_often_a_confidence_is_right() -> None:
    bins = [
        {"low": 0.0, "high": 0.4, "n": 0, "confidence": None, "accuracy": None},
        {"low": 0.4, "high": 0.6, "n": 10, "confidence": 0.5, "accuracy": 0.25},
        {"low": 0.6, "high": 1.0, "n": 40, "confidence": 1.0, "accuracy": 1.0},
    ]
    drawing = reliability(bins, title="t", kind="teacher")
    assert 'points="177,184.5 320,24"' in drawing
    assert 'y="279" height="9"' in drawing  # ten texts of forty: a quarter of 36 px
    assert drawing.count("<circle") == 2


@pytest.mark.parametrize(
    "drawing",
    [
        bars([Bar(BREAKOUT, (1,))], title=BREAKOUT, kinds=[BREAKOUT], text=str),
        scatter([Point((BREAKOUT,), 1, 90, BREAKOUT, front=True)], title=BREAKOUT,
                x_label=BREAKOUT, y_label=BREAKOUT, x_text=lambda _: BREAKOUT, foot=80),
    ],
)  # fmt: skip
def test_a_drawing_escapes_what_it_is_given(drawing: str) -> None:
    assert "<script" not in drawing
    assert "script" not in Markup(drawing).tags


# --- figures ---------------------------------------------------------------------------


def test_figures_are_as_people_read_them() -> None:
    assert [significant(v) for v in (0.37612, 9.1, 1234.5, 0, None)] == [
        "0.376", "9.10", "1,234", "0", "–",
    ]  # fmt: skip
    assert [size(v) for v in (4_230_793, 512, 91_457_259)] == ["4.23 MB", "512 B", "91.5 MB"]
    assert [energy(v) for v in (3.01e-6, 0.0253, None)] == ["3.01 mWh", "25.3 Wh", "–"]
    assert [signed(v, 1) for v in (1.25, -0.06, 0.01, -0.01)] == [
        "+1.2", "\u22120.1", "0.0", "0.0",
    ]  # fmt: skip
    assert (percent(0.91623), percent(None), times(float("nan"))) == ("91.62 %", "–", "–")


# --- the page --------------------------------------------------------------------------


def test_the_page_shows_everything_that_was_measured() -> None:
    page = Markup(render_page(rich_summary(), ["Built for `cpu-avx2`, **not** for others."]))
    assert page.ids[::2] == [
        "fronts", "stages", "gate", "flips", "calibration", "classes", "quantisation",
        "robustness", "slices", "elsewhere", "depth", "latency", "energy", "worth",
    ]  # fmt: skip
    text = " ".join(page.words)
    for fact in (
        "The candidate passed the gate", "98.81 %", "95 %: 98.12 % to 99.51 %", "21.6×", "24.2×",
        "11.1×", "3.01 mWh per 1,000, estimated", "92.73", "4.23 MB", "≤ 5.00 MB",
        "6.80 % of the texts get another label", "p 0.0055", "0.061 without and 0.018 with",
        "card_payment_wrong_exchange_rate", "KL 0.0021 nats", "encoder.layer.0.intermediate",
        "which brought the loss within the budget", "a word dropped", "names", "AUROC 0.923",
        "+0.008 to +0.071", "20 Newsgroups", "Cyrillic", "1.29×", "361,286 predictions",
        "25.3 Wh", "cpu-avx2", BREAKOUT,
    ):  # fmt: skip
        assert fact in text, fact


def test_a_section_without_evidence_is_not_there() -> None:
    whole = rich_summary()
    sections = set(Markup(render_page(whole)).ids)
    for member in whole["evidence"]:
        less = {**whole, "evidence": {**whole["evidence"], member: None}}
        assert set(Markup(render_page(less)).ids) <= sections
    bare = {name: value for name, value in whole.items() if name != "evidence"}
    page = Markup(render_page(bare))
    assert page.ids[::2] == ["fronts", "stages", "gate"]
    assert [link for link in page.links if link != "data:,"] == ["#fronts", "#stages", "#gate"]


def test_a_column_without_a_figure_is_left_out() -> None:
    summary = rich_summary()
    for tried in summary["evidence"]["quantisation"]["tried"]:
        del tried["p50_ms"]
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', render_page(summary))
    form = heads.index("form")
    assert heads[form : form + 5] == ["form", "accuracy", "KL, nats", "flipped", "size"]
    assert heads[form + 5] != "p50 ms"


def test_each_section_leaves_with_its_evidence() -> None:
    whole = rich_summary()
    owners = {
        "calibration": ["calibration"], "classes": ["per_class", "confusions"],
        "quantisation": ["quantisation"], "robustness": ["robustness", "counterfactual"],
        "slices": ["slices"], "latency": ["latency", "engine"], "energy": ["energy"],
        "depth": ["adaptive_depth"],
        "elsewhere": ["ood", "memorisation", "long_texts", "scripts", "vocabulary"],
        "flips": ["flips", "mcnemar"],
    }  # fmt: skip
    for section, members in owners.items():
        less = {**whole, "evidence": {**whole["evidence"], **dict.fromkeys(members)}}
        assert section not in Markup(render_page(less)).ids


def test_nothing_of_the_page_comes_from_elsewhere_and_nothing_runs() -> None:
    text = render_page(rich_summary())
    page = Markup(text)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not {"script", "iframe", "object", "img"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search(r"https?://", text)
    assert len(text.encode()) < 400_000


def test_what_was_measured_nowhere_is_a_dash_and_a_refusal_says_why() -> None:
    summary = rich_summary()
    del summary["evidence"]
    summary["gate"]["passed"] = False
    summary["gate"]["checks"][0].update(passed=False, value=4.2)
    summary["ratios"].update(quality_retained=None, quality_retained_ci95=None, energy=None)
    for row in summary["stages"]:
        row.update(latency_ms=None, energy_kwh_per_1k=None, energy_method="not measured")
    text = " ".join(Markup(render_page(summary)).words)
    assert "The candidate was refused" in text
    assert "Over the limit: accuracy lost, points." in text
    assert "Against latency" not in text
    assert "Against energy" not in text
    assert "less energy" not in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: str) -> None:
    """A ratio of 4.5 at least, WCAG 2.2's level AA, in every colour that words are set in."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[scheme == "dark"]))
    pairs = [(name, "card") for name in ("ink", "soft", "teacher", "linear", "stage", "candidate",
                                         "good", "bad")]  # fmt: skip
    pairs += [("ink", "ground"), ("soft", "ground"), ("stage", "ground"), ("good", "good-ground"),
              ("bad", "bad-ground"), ("ink", "bad-ground")]  # fmt: skip
    for front, back in pairs:
        light, dim = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
        assert (light + 0.05) / (dim + 0.05) >= 4.5, f"{front} on {back}"


def luminance(colour: str) -> float:
    """Relative luminance of sRGB as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_candidate_whose_answers_are_no_numbers_has_a_report() -> None:
    summary = rich_summary()
    found = summary["evidence"]
    for row in summary["stages"][-2:]:
        row["quality"] |= {"nll": None, "ece": None}
    found["calibration"] |= {"ece_before": None, "ece_after": None}
    found["quantisation"] |= {"kl": None, "sensitivity": [{"layer": "x", "kl": None, "bytes": 9}]}
    found["long_texts"]["rows"][0]["candidate_confidence"] = None
    found["scripts"][0]["mean_confidence"] = None
    found["ood"] = found["memorisation"] = None
    assert "NaN" not in render_page(summary)
    assert "None" not in "\n".join(sections(found))
    logits = np.array([[3.0, 0.0], [np.nan, 0.0], [0.0, 2.0]])
    bins = comparison.reliability(logits, np.array([0, 0, 1]))
    assert sum(row["n"] for row in bins) == 2, "what is no number has no confidence"
    assert answered(logits).tolist() == [0, -1, 1]
