"""The report page in a real browser: it runs nothing, asks for nothing and fits a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluation.page import render_page
from tests.conftest import Run
from tests.report_example import BREAKOUT, rich_summary

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=2000")  # fmt: skip
PROBE = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message || event.target.tagName), true);
addEventListener("securitypolicyviolation", (event) => errors.push(event.blockedURI));
addEventListener("load", () => {
  const root = document.documentElement;
  const clipped = [...document.querySelectorAll("svg text")].filter((text) => {
    const box = text.getBoundingClientRect();
    return box.left < -1 || box.right > innerWidth + 1;
  });
  const tiny = [...document.querySelectorAll("svg text")].filter(
    (text) => text.getBoundingClientRect().height && text.getBoundingClientRect().height < 10);
  const found = {
    width: innerWidth, wide: root.scrollWidth, errors,
    requests: performance.getEntriesByType("resource").map((entry) => entry.name)
      .filter((name) => !name.startsWith("data:")),
    clipped: clipped.map((text) => text.textContent), tiny: tiny.map((text) => text.textContent),
    sections: [...document.querySelectorAll("section")].map((section) => section.id),
    ground: getComputedStyle(document.body).backgroundColor,
    labels: [...document.querySelectorAll("#classes th")].map((head) => head.textContent),
  };
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark"><script>
addEventListener("message", (event) => {
  document.body.textContent = "FOUND" + event.data + "END";
});
</script><body><iframe src="probed.html" style="border:0;width:%dpx;height:900px"></iframe>"""
"""A window of Chromium's is at least 500 px wide; a frame may be narrower."""

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed: sh infra/install-browser.sh"
)


def look(page: str, room: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
    """What Chromium finds on a page in a frame of ``width`` px."""
    room.mkdir(exist_ok=True)
    probed = page.replace("<head>", f"<head>{PROBE}", 1)
    (room / "probed.html").write_text(probed, encoding="utf-8")
    (room / "frame.html").write_text(FRAME % width, encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = subprocess.run(
        [str(BROWSER), *FLAGS, scheme, "--window-size=1500,950", "--dump-dom",
         f"--user-data-dir={room / f'profile-{width}-{dark}'}", (room / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    match = re.search(r"FOUND(\{.*\})END", done.stdout, re.DOTALL)
    assert match, done.stdout[:500] + done.stderr[-500:]
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    found["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return found


def sound(found: dict[str, Any], width: int) -> None:
    assert found["width"] == width
    assert found["wide"] <= width, "the page is wider than its window"
    for finding in ("errors", "requests", "clipped", "tiny", "console"):
        assert found[finding] == [], finding


def test_a_page_with_all_evidence_fits_a_phone_and_a_desk_in_light_and_dark(tmp_path: Path) -> None:
    page = render_page(rich_summary(), ["A note."])
    grounds = set()
    for width, dark in ((380, False), (1400, True)):
        found = look(page, tmp_path, width, dark=dark)
        sound(found, width)
        assert len(found["sections"]) == 14
        assert BREAKOUT in found["labels"], "shown as text, not run"
        grounds.add(found["ground"])
    assert len(grounds) == 2, "dark is not light"


def test_the_probe_sees_a_fault(tmp_path: Path) -> None:
    """Else the tests above could not fail."""
    page = render_page(rich_summary())
    broken = '<div style="width:900px">wide</div><script>undefined_name()</script>'
    found = look(page.replace("<main>", f"<main>{broken}", 1), tmp_path, 380)
    assert found["wide"] >= 900
    assert any("undefined_name" in error for error in found["errors"])
    away = page.replace("<main>", '<main><img src="missing.png">', 1)
    found = look(away, tmp_path, 380)
    assert found["requests"] or found["errors"]


def test_the_page_of_a_run_is_sound(smoke: Run, tmp_path: Path) -> None:
    page = (smoke.workspace / "reports" / "index.html").read_text("utf-8")
    found = look(page, tmp_path, 380)
    sound(found, 380)
    assert {"fronts", "stages", "gate", "worth"} <= set(found["sections"])
