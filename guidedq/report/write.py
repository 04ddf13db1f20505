"""Put the report into an artifact's folder: for machines and for people."""

from __future__ import annotations

from pathlib import Path

from guidedq.artifacts.report import REPORT_NAME, Report
from guidedq.files import write_text
from guidedq.report.page import page

PAGE_NAME = "report.html"


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.html` into `folder`, in place of those that are there."""
    write_text(folder / REPORT_NAME, report.to_json())
    write_text(folder / PAGE_NAME, page(report))
