"""A nested artifact from the command line: compiled, reported, scheduled and read; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import run, run_json
from packed_folders import emit_demo
from sample_reports import sample_report

from guidedq.artifacts.diagnostic import at_most
from guidedq.artifacts.report import read_report
from guidedq.nested_compiler import at_any_width

pytestmark = pytest.mark.slow

SMALL = ("--samples", "16", "--sequence-length", "48", "--effort", "quick", "--keep", "*mlp*")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a nested demo in it."""
    folder = tmp_path_factory.mktemp("place")
    result = run(
        "compile", "demo", "--nested", "3,5", "--out", folder / "nested", "--workspace", folder / "workspace", *SMALL
    )
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "at 3 bits" in result.stdout
    assert "at 5 bits" in result.stdout
    return folder


def test_every_precision_has_a_forecast_that_is_kept_and_more_bits_lose_less(place):
    report = read_report(place / "nested")
    assert [facts.bits for facts in report.precisions] == [3, 5]
    for facts in report.precisions:
        assert 0.7 < facts.forecast.kl / facts.measured.kl < 1.4
        assert facts.forecast.kl_low <= facts.forecast.kl <= facts.forecast.kl_high
    narrow, wide = report.precisions
    assert wide.measured.kl < 0.25 * narrow.measured.kl
    assert wide.measured == report.measured
    assert wide.read_bits_per_weight == pytest.approx(report.size.bits_per_weight)
    assert narrow.read_bits_per_weight < report.size.bits_per_weight - 0.9
    assert report.size.file_bytes == (place / "nested" / "model.safetensors").stat().st_size


def test_gates_are_for_each_precision(place):
    report = read_report(place / "nested")
    narrow, wide = (facts.forecast.loss_increase for facts in report.precisions)
    largest = 0.5 * (narrow + wide)
    words = ("--nested", "3,5", "--out", place / "gated", "--workspace", place / "workspace", *SMALL)
    result = run("compile", "demo", *words, "--max-loss-increase", largest)
    assert result.exit_code == 3
    assert "at 3 bits the forecast loss increase" in result.stderr.replace("\n", " ")
    assert not (place / "gated").exists()


def test_a_check_is_that_of_the_narrowest_precision_that_warns_or_of_the_widest():
    def checks(first, second):
        return tuple(at_most(name, n, 1.0, meaning=name, advice="") for name, n in (("a", first), ("b", second)))

    found = at_any_width({3: checks(2.0, 0.3), 4: checks(3.0, 0.2), 5: checks(0.5, 0.1)})
    assert [(one.name, one.number, one.meaning) for one in found] == [("a", 2.0, "a (at 3 bits)"), ("b", 0.1, "b")]


def test_a_schedule_by_loss_is_found_written_once_and_followed(place):
    words = ("schedule", place / "nested", "--average", "4bits", "--workspace", place / "workspace")
    found = run_json(*words)
    by_name = {one["name"]: one for one in found["candidates"]}
    assert {"constant", "step", "linear", "entropy", "margin", "impurity", "token"} <= set(by_name)
    assert by_name["constant"]["average_bits"] == pytest.approx(4.0)
    assert by_name[found["best"]]["kl"] == min(one["kl"] for one in found["candidates"])
    listed = read_report(place / "nested").schedules
    assert [(one.name, one.kl) for one in listed] == [(one["name"], one["kl"]) for one in found["candidates"]]
    assert [one.name for one in listed if one.chosen] == [found["best"]]
    assert f"<strong>{found['best']}</strong>" in (place / "nested" / "report.html").read_text(encoding="utf-8")
    again = run(*words)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    texts = [
        run("generate", place / "nested", "--prompt", "Once", "--max-new-tokens", 6, *more).stdout
        for more in ((), ("--schedule", place / "nested" / "schedule.toml"), ("--schedule", "5"))
    ]
    assert texts[0] == texts[1]
    assert all(texts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nested", "5,4"), "rising"),
        (("--nested", "4"), "two or more"),
        (("--nested", "4,9"), "2 to 8"),
        (("--nested", "3,x"), "whole numbers"),
        (("--nested", "3,4", "--budget", "+0.1nats"), "bounds a loss"),
        (("--nested", "3,4", "--budget", "3bits"), "above the budget"),
        (("--nested", "3,4", "--backend", "onnx"), "only the torch backend"),
        (("--nested", "3,4", "--set", "round=nearest"), "gptq"),
    ],
)
def test_what_cannot_be_nested_is_refused_before_anything_is_written(words, message, place):
    out = place / "refused"
    result = run("compile", "demo", *words, "--out", out, "--workspace", place / "workspace", *SMALL)
    assert result.exit_code == 1, result.stderr
    assert message in result.stderr.replace("\n", " ")
    assert not out.exists()


def test_a_compile_without_budget_or_widths_is_wrong_usage():
    result = run("compile", "demo")
    assert result.exit_code == 2
    assert "--nested" in result.stderr


@pytest.mark.parametrize(
    ("average", "message"),
    [("6bits", "3 to 5 bits"), ("2", "3 to 5 bits"), ("4MB", "expected bits"), ("x", "expected")],
)
def test_averages_that_no_schedule_keeps_are_refused(average, message, place):
    result = run("schedule", place / "nested", "--average", average, "--workspace", place / "workspace")
    assert result.exit_code == 1
    assert message in result.stderr.replace("\n", " ")


def test_an_artifact_of_one_precision_has_no_schedule(tmp_path):
    folder = emit_demo(tmp_path)
    (folder / "report.json").write_text(sample_report().to_json())
    result = run("schedule", folder, "--average", "4bits")
    assert result.exit_code == 1
    assert "one precision" in result.stderr
    result = run("generate", folder, "--prompt", "Once", "--schedule", "4")
    assert result.exit_code == 1
    assert "no nested weights" in result.stderr.replace("\n", " ")
