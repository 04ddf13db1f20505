"""What more effort changes: the codes, the forecast and the loss, and never the budget."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import guidedq
from guidedq.artifacts.report import Report
from guidedq.calibration.code_tuner import CodeTuner
from guidedq.errors import RecipeError
from guidedq.recipe import EFFORTS, load_recipe

pytestmark = pytest.mark.slow

OPTIONS = {"samples": 32, "sequence_length": 96, "seed": 3}
TUNED = {**OPTIONS, "settings": ["tune=codes{steps=40}"]}
"""A sixth of the usual steps; the rest is as in the standard effort, which is the default."""
BUDGET = "3bits"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def reports(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    out = tmp_path_factory.mktemp("out")
    return {
        effort: guidedq.compile(
            "demo", budget=BUDGET, workspace=workspace, out=out / effort, effort=effort, **options
        ).report
        for effort, options in (("quick", OPTIONS), ("standard", TUNED))
    }


def test_the_default_is_the_standard_effort() -> None:
    assert load_recipe().with_settings(EFFORTS["standard"]) == load_recipe()
    with pytest.raises(RecipeError, match="quick, standard, thorough"):
        guidedq.compile("demo", budget=BUDGET, effort="enormous")


def test_more_effort_loses_less_in_the_same_bytes(reports: dict[str, Report]) -> None:
    quick, standard = reports["quick"], reports["standard"]
    assert max(quick.size.bits_per_weight, standard.size.bits_per_weight) <= 3.0
    assert standard.measured.kl < 0.85 * quick.measured.kl


def test_the_forecast_follows(reports: dict[str, Report]) -> None:
    for report in reports.values():
        assert 0.6 < report.forecast.kl / report.measured.kl < 1.5
    assert reports["standard"].forecast.kl < reports["quick"].forecast.kl


def test_what_was_tuned_is_kept(
    workspace: Path, reports: dict[str, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CodeTuner, "tune", None)  # it would fail
    again = guidedq.compile("demo", budget=BUDGET, workspace=workspace, out=tmp_path / "out", **TUNED).report
    assert again.measured == reports["standard"].measured
    assert again.forecast == reports["standard"].forecast


def test_a_tuned_model_that_is_no_better_is_left_as_it_was(
    workspace: Path, reports: dict[str, Report], tmp_path: Path
) -> None:
    wild = ["correct=none", "tune=codes{steps=3 rate=3}"]
    report = guidedq.compile(
        "demo", budget=BUDGET, workspace=workspace, out=tmp_path / "out", settings=wild, **OPTIONS
    ).report
    assert report.measured == reports["quick"].measured
    assert report.forecast == reports["quick"].forecast


def test_a_correction_stays_where_tuning_does_no_good(
    workspace: Path, reports: dict[str, Report], tmp_path: Path
) -> None:
    found = [
        guidedq.compile("demo", budget=BUDGET, workspace=workspace, out=tmp_path / tune, settings=[f"tune={tune}"],
                        **OPTIONS).report
        for tune in ("none", "codes{steps=3 rate=3}")
    ]  # fmt: skip
    assert found[0].measured == found[1].measured
    assert found[0].measured.kl < 0.95 * reports["quick"].measured.kl


def test_a_run_killed_while_tuning_goes_on_to_the_same_file(tmp_path: Path) -> None:
    words = ["compile", "demo", "--budget", BUDGET, "--samples", "16", "--sequence-length", "64", "--set",
             "tune.steps=12"]  # fmt: skip
    killed = [*words, "--workspace", str(tmp_path / "killed"), "--out", str(tmp_path / "first")]
    process = subprocess.Popen([sys.executable, "-m", "guidedq", *killed], start_new_session=True)
    while not list((tmp_path / "killed").glob("refined-*")) and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "first").exists()
    for workspace, out in (("killed", "first"), ("whole", "second")):
        command = [*words, "--workspace", str(tmp_path / workspace), "--out", str(tmp_path / out)]
        subprocess.run([sys.executable, "-m", "guidedq", *command], check=True, capture_output=True)
    first, second = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("first", "second"))
    assert first == second
