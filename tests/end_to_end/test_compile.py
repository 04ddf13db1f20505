"""The whole compiler on the demo model: promises that only the whole can keep."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import guidedq
from guidedq.artifacts.report import Report
from guidedq.calibration.fisher import FisherGuide
from guidedq.errors import BudgetError, GateError, OutputError

OPTIONS = {"samples": 8, "sequence_length": 64, "seed": 3, "effort": "quick"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def artifact(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> guidedq.Artifact:
    out = tmp_path_factory.mktemp("out") / "demo"
    return guidedq.compile("demo", budget="3.5bits", workspace=workspace, out=out, **OPTIONS)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


class Killed(BaseException):
    """Stands for a kill: no handler for errors may catch it."""


class Killing:
    """Progress that kills the run in the middle of one stage."""

    def __init__(self, stage: str) -> None:
        self.stage, self.left = stage, -1

    def start(self, stage: str, total: int) -> None:
        self.left = total // 2 if stage == self.stage else -1

    def advance(self, steps: int = 1) -> None:
        if self.left >= 0:
            self.left -= steps
            if self.left <= 0:
                raise Killed

    def notice(self, text: str) -> None: ...


def test_the_file_is_within_the_budget_and_close_below_it(artifact: guidedq.Artifact) -> None:
    size = (artifact.folder / "model.safetensors").stat().st_size
    bits = 8 * size / artifact.report.model.parameters
    assert 3.47 <= bits <= 3.5
    assert artifact.report.size.file_bytes == size
    assert sum(site.bytes for site in artifact.report.sites) < size


def test_the_forecast_comes_true_within_its_interval_or_nearly(artifact: guidedq.Artifact) -> None:
    report = artifact.report
    assert report.forecast.kl_low <= report.forecast.kl <= report.forecast.kl_high
    assert report.measured.kl == pytest.approx(report.forecast.kl, rel=0.5)  # eight short sequences are few
    assert report.measured.loss_after > report.measured.loss_before


def test_the_report_on_disk_is_the_report_that_is_returned(artifact: guidedq.Artifact) -> None:
    assert Report.read(artifact.folder / "report.json") == artifact.report
    assert "<html" in (artifact.folder / "report.html").read_text()


def test_the_loaded_artifact_computes_what_the_report_measured_and_generates(artifact: guidedq.Artifact) -> None:
    model = guidedq.load_quantized(artifact.folder)
    original = guidedq.load("demo")
    tokens = torch.arange(10, 42)[None]
    logits = model(input_ids=tokens).logits
    assert logits.shape == (1, 32, original.vocabulary_size)
    assert not torch.equal(logits, original.program.predict({"input_ids": tokens}))
    assert model.generate(tokens, max_new_tokens=5, do_sample=False).shape == (1, 37)


def test_another_budget_needs_no_data_pass(
    workspace: Path, artifact: guidedq.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("the guidance was collected again")

    monkeypatch.setattr(FisherGuide, "collect", refuse)
    other = guidedq.compile("demo", budget="4bits", workspace=workspace, out=tmp_path / "four", **OPTIONS)
    assert other.report.forecast.kl < artifact.report.forecast.kl
    assert other.report.measured.kl < artifact.report.measured.kl


@pytest.mark.parametrize("stage", ["guidance", "curves", "probe", "round and pack"])
def test_a_run_killed_in_the_middle_of_a_stage_goes_on_to_the_same_bytes(
    stage: str, artifact: guidedq.Artifact, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = {"budget": "3.5bits", "workspace": tmp_path / "ws", "out": out, **OPTIONS}
    with pytest.raises(Killed):
        guidedq.compile("demo", progress=Killing(stage), **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["ws"]
    guidedq.compile("demo", **arguments)
    assert digest(out) == digest(artifact.folder)


def test_a_missed_gate_leaves_nothing_behind(workspace: Path, artifact: guidedq.Artifact, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="exceeds the gate"):
        guidedq.compile(
            "demo", budget="3.5bits", workspace=workspace, out=tmp_path / "out", max_loss_increase=1e-4, **OPTIONS
        )
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unasked(workspace: Path, artifact: guidedq.Artifact) -> None:
    before = digest(artifact.folder)
    with pytest.raises(OutputError, match="overwrite"):
        guidedq.compile("demo", budget="4bits", workspace=workspace, out=artifact.folder, **OPTIONS)
    assert digest(artifact.folder) == before


@pytest.mark.parametrize("budget", ["1bits", "99bits", "1kB"])
def test_an_impossible_budget_names_the_feasible_range_before_any_calibration(budget: str, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"Feasible: 1\.\d+ bits .* to 16\.\d+ bits"):
        guidedq.compile("demo", budget=budget, workspace=tmp_path / "ws", out=tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "ws").exists()


def test_guided_mixed_bits_lose_less_than_uniform_gptq_of_the_same_size(
    workspace: Path, artifact: guidedq.Artifact, tmp_path: Path
) -> None:
    uniform = guidedq.compile(
        "demo", budget="3.5bits", workspace=workspace, out=tmp_path / "uniform", recipe="gptq", **OPTIONS
    )
    assert artifact.report.measured.kl < 0.8 * uniform.report.measured.kl


def test_correcting_for_the_quantized_prefix_keeps_the_budget(workspace: Path, tmp_path: Path) -> None:
    corrected = guidedq.compile(
        "demo",
        budget="3bits",
        workspace=workspace,
        out=tmp_path / "out",
        settings=["correct=prefix{samples=8}"],
        **OPTIONS,
    )
    assert corrected.report.size.bits_per_weight <= 3.0
    assert corrected.report.measured.kl < 2.0 * corrected.report.forecast.kl


def test_linear_scope_leaves_embeddings_alone(workspace: Path, tmp_path: Path) -> None:
    linear = guidedq.compile(
        "demo", budget="3bits", workspace=workspace, out=tmp_path / "out", settings=["scope=linear"], **OPTIONS
    )
    assert linear.report.size.linear_bits_per_weight == pytest.approx(3.0, abs=0.03)
    assert linear.report.size.linear_bits_per_weight <= 3.0
    assert all("embed" not in site.name for site in linear.report.sites)
