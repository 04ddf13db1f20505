"""From a compile to a verdict: a healthy demo warns of nothing, meets its policy and is what its report says."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from command_line import run, run_json

import guidedq

POLICY = """
[at-most]
loss-increase = 0.2
perplexity-ratio = 1.2
file-bytes = "156kB"
forecast-error = 0.5
[diagnostics]
"""


@pytest.mark.slow
def test_a_healthy_demo_goes_through_every_gate(tmp_path: Path) -> None:
    out, workspace = tmp_path / "demo", tmp_path / "workspace"
    options = ("--samples", 32, "--sequence-length", 128, "--effort", "quick", "--workspace", workspace)
    compiled = run_json("compile", "demo", "--budget", "3.5bits", "--out", out, "--strict", *options)
    assert len(compiled["diagnostics"]) == 11
    assert {check["verdict"] for check in compiled["diagnostics"]} == {"fine"}
    (tmp_path / "policy.toml").write_text(POLICY)
    result = run("check", out, "--policy", tmp_path / "policy.toml", "--junit", tmp_path / "check.xml")
    assert result.exit_code == 0, result.stdout
    assert ElementTree.parse(tmp_path / "check.xml").getroot().attrib == {
        "name": "guidedq",
        "tests": "15",
        "failures": "0",
    }
    verified = guidedq.verify(out, workspace=workspace)
    assert verified.agrees
    assert [number.reported for number in verified.numbers] == [number.measured for number in verified.numbers]
