"""`guidedq check`: 0 met, 3 not met, 2 what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from command_line import run
from sample_reports import sample_report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "report.json").write_text(sample_report().to_json())
    (tmp_path / "met.toml").write_text("[at-most]\nkl = 0.1\nfile-bytes = 1000")
    (tmp_path / "missed.toml").write_text("[at-most]\nkl = 0.1\nfile-bytes = 100")
    return tmp_path


def test_a_policy_that_is_met_exits_with_0_and_says_what_was_held_against_what(folder: Path) -> None:
    for place in (folder, folder / "report.json"):
        result = run("check", place, "--policy", folder / "met.toml")
        assert result.exit_code == 0, result.stderr
        assert result.stdout.splitlines() == ["met  kl: 0.0119, at most 0.1", "met  file-bytes: 780, at most 1000"]
        assert result.stderr == ""


def test_a_policy_that_is_not_met_exits_with_3_and_still_writes_its_results(folder: Path) -> None:
    words = ("check", folder, "--policy", folder / "missed.toml", "--junit", folder / "check.xml")
    result = run(*words)
    assert result.exit_code == 3
    assert "NOT MET  file-bytes: 780, at most 100" in result.stdout
    assert "gate missed" in result.stderr and "file-bytes" in result.stderr
    assert ElementTree.parse(folder / "check.xml").getroot().get("failures") == "1"
    found = run(*words, "--json")
    assert found.exit_code == 3
    content = json.loads(found.stdout)
    assert (content["model"], content["met"]) == ("tiny", False)
    assert [check["met"] for check in content["checks"]] == [True, False]


@pytest.mark.parametrize(
    ("policy", "part"),
    [("[at-most]\nkll = 1", "no metric"), ("[at-most", "no TOML"), ("", "asks nothing")],
)
def test_a_policy_that_cannot_be_read_exits_with_2(folder: Path, policy: str, part: str) -> None:
    (folder / "bad.toml").write_text(policy)
    result = run("check", folder, "--policy", folder / "bad.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert part in result.stderr and "bad.toml" in result.stderr


def test_a_report_that_cannot_be_read_exits_with_2(folder: Path) -> None:
    path = folder / "report.json"
    whole = path.read_text()
    newer = json.dumps({**json.loads(whole), "version": 99})
    unsealed = {**json.loads(whole), "digests": {}}
    wrong = json.dumps({**unsealed, "measured": {**unsealed["measured"], "kl": None}})
    for damaged, part in (
        (wrong, "no report"),
        (whole[:500], "no report"),
        ("[]", "no report"),
        ("{}", "no report"),
        (newer, "Install a newer"),
    ):
        path.write_text(damaged)
        result = run("check", folder, "--policy", folder / "met.toml")
        assert (result.exit_code, result.stdout) == (2, "")
        assert part in result.stderr and "Traceback" not in result.stderr
    path.unlink()
    assert "has no report.json" in run("check", folder, "--policy", folder / "met.toml").stderr
    assert "no such report" in run("check", path, "--policy", folder / "met.toml").stderr


def test_what_is_missing_or_cannot_be_written_exits_with_2(folder: Path) -> None:
    assert run("check", folder).exit_code == 2
    assert run("check", folder, "--policy", folder / "none.toml").exit_code == 2
    result = run("check", folder, "--policy", folder / "met.toml", "--junit", folder / "nowhere" / "check.xml")
    assert result.exit_code == 2 and "cannot be written" in result.stderr


def test_a_report_from_before_versions_is_read(folder: Path) -> None:
    content = json.loads((folder / "report.json").read_text())
    for name in ("version", "diagnostics", "sampling", "files"):
        del content[name]
    del content["model"]["path"], content["digests"]["report"]
    (folder / "report.json").write_text(json.dumps(content))
    assert run("check", folder, "--policy", folder / "met.toml").exit_code == 0


def test_the_help_shows_a_policy_that_is_one(folder: Path) -> None:
    lines = [line.strip() for line in run("check", "--help").stdout.splitlines()]
    toml = "\n".join(lines[lines.index("[at-most]") : lines.index('allowed = ["over-training"]') + 1])
    (folder / "help.toml").write_text(toml)
    assert run("check", folder, "--policy", folder / "help.toml").exit_code == 3
    assert run("check", folder, "--policy", folder / "help.toml", "--json").stdout.count('"met"') == 5
