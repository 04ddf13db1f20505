"""The page in a real browser, where one is installed: nothing fails, nothing is loaded, and it fits a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from sample_reports import precisions, sample_report, schedules

from guidedq.artifacts.report import Report
from guidedq.report.page import page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, DESKTOP = 360, 1280
NESTED = sample_report(precisions=precisions(), schedules=schedules(), curve=())
MEASURE = """
<body style="margin:0"><iframe id="frame" style="border:0;width:{width}px;height:800px" srcdoc="{page}"></iframe>
<pre id="found"></pre><script>
onload = () => {{
  const inner = document.getElementById("frame").contentDocument;
  const wide = [...inner.querySelectorAll("body *")].filter(e => !e.closest(".scroll *, svg *"))
    .filter(e => e.getBoundingClientRect().right > {width} + 0.5).map(e => e.tagName + "." + e.className);
  const small = [...inner.querySelectorAll("svg:not(.mix) text")].filter(e => e.getClientRects().length)
    .map(e => e.getBoundingClientRect().height).filter(h => h > 0);
  document.getElementById("found").textContent = JSON.stringify({{
    width: inner.documentElement.scrollWidth, wide: wide, smallest: Math.min(...small),
    shown: [...inner.querySelectorAll("svg[role=img]")].filter(e => e.getClientRects().length).length,
    loaded: performance.getEntriesByType("resource").length,
  }});
}};
</script></body>
"""


def opened(tmp_path: Path, report: Report, width: int) -> tuple[dict[str, object], str]:
    """What the browser found in the page at a width, and what it complained of."""
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(MEASURE.format(width=width, page=html.escape(page(report), quote=True)))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000"]
    command = [str(BROWSER), *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), "\n".join(complaints)


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("report", [sample_report(), NESTED], ids=["plain", "nested"])
def test_the_page_opens_without_complaint_and_fits_the_width(tmp_path: Path, report: Report, width: int) -> None:
    found, complaints = opened(tmp_path, report, width)
    assert complaints == ""
    assert found["wide"] == []
    assert isinstance(found["width"], int)
    assert found["width"] <= width
    assert found["shown"] == 3 + bool(report.schedules), "the allocation for this width, curve, promise, schedules"
    assert found["loaded"] == 0
    assert isinstance(found["smallest"], float | int)
    assert found["smallest"] >= 9.5, "pixels that the smallest text of a figure takes"
