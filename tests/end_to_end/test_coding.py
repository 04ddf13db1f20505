"""Codes stored by their entropy, or in fixed widths: sizes of whole files."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import guidedq
from guidedq.artifacts.packed_weight import unpack_weight
from guidedq.artifacts.quantized_weight import EntropySegment
from guidedq.artifacts.report import PlanPoint

OPTIONS = {"samples": 8, "sequence_length": 64, "seed": 3, "effort": "quick"}
BITS = [3.0, 3.5, 4.0]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


def size_on_disk(artifact: guidedq.Artifact) -> int:
    return (artifact.folder / "model.safetensors").stat().st_size


def planned(workspace: Path, bits: float, *settings: str) -> PlanPoint:
    (point,) = guidedq.plan("demo", budgets=[f"{bits}bits"], workspace=workspace, settings=settings, **OPTIONS)
    return point


def entropy_segments(artifact: guidedq.Artifact) -> int:
    """Segments whose codes are stored by their entropy, in the file."""
    tensors = load_file(artifact.folder / "model.safetensors")
    matrices = {site.name: (site.shape[0], site.shape[1]) for site in artifact.report.sites}
    weights = [unpack_weight(tensors[name], name, matrix) for name, matrix in matrices.items()]
    return sum(isinstance(segment, EntropySegment) for weight in weights for segment in weight.segments)


@pytest.mark.parametrize("bits", BITS)
def test_a_file_of_unknown_size_fills_its_budget_to_a_hundredth(bits: float, workspace: Path, tmp_path: Path) -> None:
    artifact = guidedq.compile("demo", budget=f"{bits}bits", workspace=workspace, out=tmp_path / "out", **OPTIONS)
    size, limit = size_on_disk(artifact), artifact.report.budget.bytes
    assert limit == int(bits * artifact.report.model.parameters / 8)
    assert 0.99 * limit < size <= limit
    assert artifact.report.size.file_bytes == size
    assert entropy_segments(artifact) > 0
    assert planned(workspace, bits).bytes == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize("bits", BITS)
def test_a_file_of_fixed_widths_has_the_size_that_was_planned(bits: float, workspace: Path, tmp_path: Path) -> None:
    settings = ["coding=fixed"]
    artifact = guidedq.compile(
        "demo", budget=f"{bits}bits", workspace=workspace, out=tmp_path / "out", settings=settings, **OPTIONS
    )
    size, limit = size_on_disk(artifact), artifact.report.budget.bytes
    assert 0.99 * limit < size <= limit
    point = planned(workspace, bits, *settings)
    assert point.bytes == size
    assert point.forecast.raw_kl == artifact.report.forecast.raw_kl
    assert point.forecast.kl == pytest.approx(artifact.report.forecast.kl, rel=0.3)
    assert entropy_segments(artifact) == 0
    assert all("entropy" not in site.format for site in artifact.report.sites)


@pytest.mark.parametrize("bits", BITS)
def test_codes_stored_by_their_entropy_are_forecast_to_lose_less(bits: float, workspace: Path) -> None:
    coded, fixed = planned(workspace, bits), planned(workspace, bits, "coding=fixed")
    assert coded.forecast.kl < 0.8 * fixed.forecast.kl
