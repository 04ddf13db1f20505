"""A policy says what a report must say; what it cannot find is not met."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from sample_reports import latency_facts, precisions, sample_report

import guidedq
from guidedq.artifacts.diagnostic import at_most
from guidedq.artifacts.report import MeasuredFacts, Report
from guidedq.errors import PolicyError
from guidedq.report.policy import METRICS, check_policy, parse_policy, read_policy

QUIET = at_most("overlap", 0.1, 0.2, meaning="shared", advice="Give other data.")
LOUD = at_most("text-fit", 3.0, 1.0, meaning="too far", advice="Give other text.")


def report(**measured: float | None) -> Report:
    """KL 0.0119 measured, 0.0123 forecast; loss 2.0 to 2.5; 780 bytes, 3.98 bits."""
    sample = sample_report(diagnostics=(QUIET, LOUD))
    return replace(sample, measured=replace(sample.measured, **measured))


def met(toml: str, found: Report) -> bool:
    return check_policy(found, parse_policy(toml)).met


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("loss-increase", 0.5),
        ("kl", 0.0119),
        ("perplexity-ratio", math.exp(0.5)),
        ("accuracy-drop", 0.8 - 0.75),
        ("bits-per-weight", 3.98),
        ("linear-bits-per-weight", 3.71),
        ("file-bytes", 780.0),
        ("forecast-error", (0.0123 - 0.0119) / 0.0119),
        ("latency-ratio", 0.625),
        ("agreement", 0.932),
        ("accuracy", 0.75),
        ("kl-upper-bound", 1.3 * 0.0123),
        ("loss-increase-upper-bound", 1.4 * 0.0123),
        ("accuracy-drop-upper-bound", 0.07),
    ],
)
def test_every_metric_is_met_at_its_value_and_not_beyond(metric: str, value: float) -> None:
    found = replace(report(accuracy_before=0.8, accuracy_after=0.75), latency=latency_facts(0.625))
    found = replace(found, forecast=replace(found.forecast, accuracy_drop_high=0.07))
    assert METRICS[metric](found) == pytest.approx(value, rel=1e-12)
    assert met(f"[at-most]\n{metric} = {value + 1e-9!r}", found)
    assert not met(f"[at-most]\n{metric} = {value - 1e-9!r}", found)
    assert met(f"[at-least]\n{metric} = {value - 1e-9!r}", found)
    assert not met(f"[at-least]\n{metric} = {value + 1e-9!r}", found)


def test_every_metric_is_tested_above() -> None:
    assert set(METRICS) == {
        "loss-increase", "kl", "perplexity-ratio", "accuracy-drop", "bits-per-weight", "linear-bits-per-weight",
        "file-bytes", "forecast-error", "latency-ratio", "agreement", "accuracy", "kl-upper-bound",
        "loss-increase-upper-bound", "accuracy-drop-upper-bound",
    }  # fmt: skip


def test_a_nested_artifact_is_judged_at_each_precision_and_once_for_its_size() -> None:
    nested = replace(report(), precisions=precisions())
    policy = parse_policy("[at-most]\nkl = 0.01\nfile-bytes = 1000\n[at-least]\nagreement = 0.9")
    checks = {check.name: check.met for check in check_policy(nested, policy).checks}
    assert checks == {
        "kl at 3 bits": False, "kl at 4 bits": True, "kl at 5 bits": True, "file-bytes": True,
        "agreement at 3 bits": True, "agreement at 4 bits": True, "agreement at 5 bits": True,
    }  # fmt: skip


def test_bytes_may_have_a_unit() -> None:
    assert met('[at-most]\nfile-bytes = "0.78kB"', report())
    assert not met('[at-most]\nfile-bytes = "0.77kB"', report())


def test_a_number_that_the_report_lacks_is_not_met() -> None:
    (check,) = check_policy(report(), parse_policy("[at-most]\naccuracy-drop = 1.0")).checks
    assert not check.met and "no such number" in check.found
    values = replace(report(), model=replace(report().model, objective="values"))
    assert not met("[at-most]\nperplexity-ratio = 1e9", values)


def test_what_is_no_number_or_infinite_is_not_met() -> None:
    lost = MeasuredFacts(
        kl=math.nan,
        loss_before=2.0,
        loss_after=math.inf,
        agreement=0.0,
        accuracy_before=None,
        accuracy_after=None,
        tokens=1,
    )
    found = replace(report(), measured=lost)
    for metric in ("kl", "loss-increase", "perplexity-ratio", "forecast-error"):
        assert not met(f"[at-most]\n{metric} = 1e300", found), metric
    assert not met("[at-most]\nforecast-error = 1e300", report(kl=0.0))
    assert not met("[at-least]\nkl = 0.0", found)
    assert not met("[at-least]\naccuracy = 0.0", found)


def test_warnings_fail_unless_they_are_allowed_or_not_looked_at() -> None:
    assert met("[at-most]\nkl = 1", report())
    assert not met("[diagnostics]", report())
    assert not met('[diagnostics]\nallowed = ["overlap"]', report())
    assert met('[diagnostics]\nallowed = ["text-fit"]', report())
    checks = {check.name: check for check in check_policy(report(), parse_policy("[diagnostics]")).checks}
    assert checks["overlap"].met and "Give other text." in checks["text-fit"].found
    assert not met("[diagnostics]", sample_report())


@pytest.mark.parametrize(
    ("toml", "part"),
    [
        ("[at-most]\nkll = 1", "no metric 'kll'. Metrics: loss-increase"),
        ("[at-least]\nkll = 1", "no metric 'kll'. Metrics: loss-increase"),
        ("[at-least]\nagreement = true", "expected a number"),
        ("[at-most", "no TOML"),
        ("", "asks nothing"),
        ("[at-most]", "asks nothing"),
        ("kl = 1", "found 'kl'"),
        ("at-most = 3", "expected a table"),
        ('[at-most]\nkl = "low"', "expected a number"),
        ("[at-most]\nkl = true", "expected a number"),
        ("[at-most]\nkl = nan", "expected a number"),
        ('[at-most]\nfile-bytes = "3bits"', "expected bytes"),
        ('[at-most]\nfile-bytes = "much"', "expected a size"),
        ("[diagnostics]\nallow = []", "found 'allow'"),
        ('[diagnostics]\nallowed = "all"', "expected a list"),
    ],
)
def test_what_is_no_policy_is_refused_with_what_is_wrong(toml: str, part: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(toml)
    assert part in str(caught.value)


def test_a_policy_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "wrong.toml").write_text("[at-most]\nkll = 1")
    for name in ("nowhere.toml", "binary.toml", "wrong.toml"):
        with pytest.raises(PolicyError, match=name):
            read_policy(tmp_path / name)


def test_the_face_takes_reports_and_policies_or_their_files(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report().to_json())
    (tmp_path / "policy.toml").write_text("[at-most]\nkl = 1")
    policy = read_policy(tmp_path / "policy.toml")
    for given in (report(), tmp_path, tmp_path / "report.json"):
        for asked in (policy, tmp_path / "policy.toml"):
            assert guidedq.check(given, asked) == check_policy(report(), policy)
