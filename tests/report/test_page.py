import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_reports import latency_facts, precisions, sample_report, schedules

from guidedq.artifacts.diagnostic import at_most
from guidedq.artifacts.report import MeasuredFacts, Report
from guidedq.errors import ArtifactError
from guidedq.report.page import page
from guidedq.report.write import write_report

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Reader(HTMLParser):
    """Collects tags and attributes, and checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def text() -> str:
    return page(sample_report())


def test_the_page_loads_nothing_and_runs_nothing(text: str) -> None:
    reader = Reader(text)
    assert reader.open == []
    assert "<script" not in text
    assert "@import" not in text
    loaded = [value for _, name, value in reader.attributes if name in ("src", "href", "xlink:href", "action")]
    assert all(value.startswith(("#", "data:")) for value in loaded)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_every_id_is_used_once_and_every_reference_has_its_target(text: str) -> None:
    reader = Reader(text)
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    targets = {value[1:] for _, name, value in reader.attributes if name.endswith("href") and value.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]*)\)", text))
    assert targets <= set(ids)
    assert targets


def test_the_page_says_every_headline_number_and_every_site(text: str) -> None:
    words = " ".join(Reader(text).text)
    for part in (
        "780 B",
        "3.980 bits",
        "0.0123",
        "0.0119",
        "+0.500",
        "7.39",
        "12.2",
        "93.2%",
        "123.000 MB",
        "a notice",
    ):
        assert part in words, part
    for site in sample_report().sites:
        assert site.name in words
    assert "3-bit/64: 12, 5-bit/64 symmetric +2 outliers: 4" in words
    assert "whole file 3.98" in words


def test_neutral_colours_are_the_pages_variables_so_that_dark_mode_works(text: str) -> None:
    drawings = "".join(re.findall(r"<svg role.*?</svg>", text, flags=re.DOTALL))
    assert "var(--ink)" in drawings
    assert not re.search(r"#000000|#ffffff|: ?(black|white)\b", drawings)


def test_the_page_says_every_diagnostic_and_what_to_do_about_warnings() -> None:
    quiet = at_most("overlap", 0.1, 0.2, meaning="shared runs", advice="Give other data.")
    loud = at_most("over-training", 14800.0, 1000.0, meaning="tokens per parameter", advice="Expect more loss.")
    words = " ".join(Reader(page(sample_report(diagnostics=(quiet, loud)))).text)
    assert "overlap: fine" in words and "shared runs: 0.1, at most 0.2" in words
    assert "over-training: warning" in words and "tokens per parameter: 14,800, at most 1,000" in words
    assert "Expect more loss." in words and "Give other data." not in words


def test_a_nested_report_has_every_precision_and_every_schedule() -> None:
    text = page(sample_report(precisions=precisions(), schedules=schedules(), curve=()))
    reader = Reader(text)
    assert reader.open == []
    words = " ".join(reader.text)
    for part in ("tiny at 3, 4, 5 bits", "KL measured at 5 bits", "At 4 bits the measured KL lies outside"):
        assert part in words, part
    rows = [[re.sub("<.*?>", "", cell) for cell in row.split("</td>")[:-1]] for row in text.split("<tr>")]
    three = ["3", "637 B", "3.250", "0.0156 (0.0125 to 0.0203)", "0.0161", "+0.0141 (+0.00781 to +0.0219)", "+0.0161"]
    assert [*three, "93.2%"] in rows
    assert ["entropy", "3.487", "0.0147", "0.0132 to 0.0176", "prefill=5,entropy=3&lt;1.5&lt;4"] in rows
    assert "<strong>entropy</strong>" in text and "<strong>constant</strong>" not in text
    assert "Loss against size" not in words
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(set(ids)) == len(ids)


def test_a_report_of_one_precision_has_neither_precisions_nor_schedules(text: str) -> None:
    words = " ".join(Reader(text).text)
    assert "tiny at 4bits" in words
    assert not any(part in words for part in ("Precisions", "Schedules", "KL measured at"))


def test_the_page_says_where_the_knee_is_and_where_the_bits_go_by_budget(text: str) -> None:
    words = " ".join(Reader(text).text)
    assert "The knee is at 4bits" in words
    assert "Where the bits go at other budgets" in words
    rows = [[re.sub("<.*?>", "", cell) for cell in row.split("</td>")[:-1]] for row in text.split("<tr>")]
    assert ["3bits", "2.50 bits, 30.0%", "3.25 bits, 60.0%", "10.0%"] in rows
    bare = page(sample_report(curve=()))
    assert "at other budgets" not in bare and "The knee" not in bare


def test_names_are_escaped() -> None:
    report = sample_report(notices=("<b>bold</b> & more",))
    report = replace(report, model=replace(report.model, name='a"<i>'))
    text = page(report)
    assert "<b>bold" not in text
    assert "<i>" not in text
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; more" in text


def test_a_report_without_curve_probes_and_finite_numbers_still_has_a_page() -> None:
    lost = MeasuredFacts(
        kl=math.inf,
        loss_before=0.0,
        loss_after=math.inf,
        agreement=0.0,
        accuracy_before=0.5,
        accuracy_after=0.0,
        tokens=1,
    )
    report = sample_report(curve=(), probes=(), measured=lost, seconds={})
    words = " ".join(Reader(page(report)).text)
    assert "infinite" in words
    assert "above the forecast" in words


def test_the_same_report_gives_the_same_page(text: str) -> None:
    assert page(sample_report()) == text


def test_a_report_reads_back_from_its_folder(tmp_path: Path) -> None:
    for report in (sample_report(), sample_report(precisions=precisions(), schedules=schedules())):
        write_report(report, tmp_path)
        assert Report.read(tmp_path / "report.json") == report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"curve": []}', "no json"])
def test_what_is_no_report_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "report.json").write_text(damage)
    with pytest.raises(ArtifactError, match="no report"):
        Report.read(tmp_path / "report.json")


def test_the_json_has_the_stable_names() -> None:
    content = json.loads(sample_report().to_json())
    stable = {
        "model": {"parameters", "digest"},
        "budget": {"asked", "bytes"},
        "size": {"file_bytes", "bits_per_weight", "linear_bits_per_weight"},
        "forecast": {"kl", "kl_low", "kl_high", "loss_increase"},
        "measured": {"kl", "loss_before", "loss_after", "tokens"},
        "seconds": {"guidance"},
    }
    for part, names in stable.items():
        assert names <= set(content[part])
    assert isinstance(content["peak_memory_bytes"], int)
    assert {"name", "shape", "format", "bits", "bytes", "distortion"} <= set(content["sites"][0])


def test_the_latency_is_told_where_it_was_asked_about(tmp_path: Path) -> None:
    report = replace(sample_report(), latency=latency_facts(0.625))
    assert "0.600 forecast, 3 sites in integers" in page(report)
    assert "sites in integers" not in page(sample_report())
    write_report(report, tmp_path)
    assert Report.read(tmp_path / "report.json").latency == report.latency
