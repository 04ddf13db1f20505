"""The page in a real browser, where one is installed: nothing fails, nothing is loaded, and it fits a phone.

`report.html` is opened as users open it: by its address as a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import BROWSER, Browser, browser
from sample_reports import precisions, sample_report, schedules

from guidedq.artifacts.report import Report
from guidedq.report.write import PAGE_NAME, write_report

PHONE, DESKTOP = 360, 1280
LEAST_LETTER = 9.5
"""Pixels that the smallest text of a figure takes."""
NESTED = sample_report(precisions=precisions(), schedules=schedules(), curve=())
MEASURE = """
(() => {
  const beyond = [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll *, svg *"))
    .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName);
  const letters = [...document.querySelectorAll("svg:not(.mix) text")].filter(e => e.getClientRects().length)
    .map(e => e.getBoundingClientRect().height).filter(h => h > 0);
  const shown = [...document.querySelectorAll("svg[role=img]")].filter(e => e.getClientRects().length).length;
  const width = document.documentElement.scrollWidth;
  return {window: innerWidth, width: width, beyond: beyond, smallest: Math.min(...letters, 1000), shown: shown};
})()
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser is installed")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("report", [sample_report(), NESTED], ids=["plain", "nested"])
def test_the_file_opens_without_complaint_loads_nothing_and_fits_the_width(
    chromium: Browser, tmp_path: Path, report: Report, width: int
) -> None:
    write_report(report, tmp_path)
    seen = chromium.open(tmp_path / PAGE_NAME, width, MEASURE)
    assert seen.address == (tmp_path / PAGE_NAME).as_uri()
    assert seen.complaints == []
    assert seen.requests == []
    assert seen.found["beyond"] == []
    assert seen.found["window"] == width
    assert seen.found["width"] <= width
    drawings = ("allocation", "curve", "promise", "schedules" if report.schedules else "parts")
    assert seen.found["shown"] == len(drawings), "one of each for this width"
    assert seen.found["smallest"] >= LEAST_LETTER


def test_a_page_that_loads_fails_and_is_too_wide_is_told_from_ours(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "style.css").write_text("p { color: red }")
    (tmp_path / PAGE_NAME).write_text(
        '<link rel="stylesheet" href="style.css"><img src="http://127.0.0.1:9/none.png"><p style="width:500px">wide</p>'
        '<svg role="img"><text font-size="4">small</text></svg><script>throw Error("broken")</script>'
    )
    seen = chromium.open(tmp_path / PAGE_NAME, PHONE, MEASURE)
    assert {Path(address).name for address in seen.requests} == {"style.css", "none.png"}
    assert any("broken" in complaint for complaint in seen.complaints)
    assert seen.found["beyond"] == ["P"]
    assert seen.found["width"] > PHONE
    assert seen.found["smallest"] < LEAST_LETTER
