"""Put the report into an artifact's folder: for machines and for people."""

from __future__ import annotations

from pathlib import Path

from guidedq.artifacts.report import REPORT_NAME, Report
from guidedq.report.page import page

PAGE_NAME = "report.html"


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.html` into `folder`."""
    (folder / REPORT_NAME).write_text(report.to_json(), encoding="utf-8")
    (folder / PAGE_NAME).write_text(page(report), encoding="utf-8")
