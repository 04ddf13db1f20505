from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sample_reports import sample_report

from guidedq.errors import OutputError
from guidedq.report.junit import junit_text, write_junit
from guidedq.report.policy import check_policy, parse_policy

POLICY = parse_policy("[at-most]\nkl = 0.02\nloss-increase = 0.1\nbits-per-weight = 4")


def test_every_demand_is_a_test_case_and_what_is_not_met_a_failure() -> None:
    root = ElementTree.fromstring(junit_text(check_policy(sample_report(), POLICY)))
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "0")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert list(cases) == ["kl", "loss-increase", "bits-per-weight"]
    failure = cases["loss-increase"].find("failure")
    assert failure is not None and failure.get("message") == "0.5, at most 0.1"
    assert cases["kl"].find("failure") is None
    digests = {entry.get("name"): entry.get("value") for entry in suite.iter("property")}
    assert digests == {"sha256.model": "ab" * 32}


def test_names_that_xml_cannot_hold_do_no_harm() -> None:
    report = sample_report()
    report = replace(report, model=replace(report.model, name='a<b>&"\x00\ud800'))
    (suite,) = ElementTree.fromstring(junit_text(check_policy(report, POLICY)))
    assert suite.get("name") == 'guidedq check a<b>&"?? at 4bits'


def test_the_file_is_written_whole_or_refused(tmp_path: Path) -> None:
    result = check_policy(sample_report(), POLICY)
    write_junit(result, tmp_path / "check.xml")
    assert (tmp_path / "check.xml").read_text() == junit_text(result)
    assert [path.name for path in tmp_path.iterdir()] == ["check.xml"]
    for place in (tmp_path, tmp_path / "nowhere" / "check.xml"):
        with pytest.raises(OutputError, match="cannot be written"):
            write_junit(result, place)
