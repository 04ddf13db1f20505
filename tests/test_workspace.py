import errno
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_weights import random_weight, same_segment
from safetensors import SafetensorError

from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.forecast import Measurement, Probe
from guidedq.artifacts.quantized_weight import AffineSegment, EntropySegment
from guidedq.artifacts.samples import CalibrationSet, SampleSet
from guidedq.errors import OutputError
from guidedq.quant.formats import AffineFormat, EntropyFormat, RoundedFormat
from guidedq.workspace import (
    Workspace,
    default_workspace,
    finish,
    is_finished,
    load_calibration_set,
    load_codes,
    load_curve,
    load_probe,
    save_calibration_set,
    save_codes,
    save_curve,
    save_probe,
    storing,
)

FORMATS = (AffineFormat(bits=3, group_size=32, symmetric=True, outliers=2), EntropyFormat(bits=2.5))


def curve(*, projections: bool = True) -> SiteCurve:
    generator = torch.Generator().manual_seed(0)
    return SiteCurve(
        name="a.b/c:weight",
        formats=FORMATS,
        distortion=torch.rand(5, 2, generator=generator),
        row_noise=torch.rand(5, generator=generator),
        entropy_bytes=torch.tensor([0.0, 17.375]),
        projections=torch.rand(5, 2, 3, generator=generator) if projections else None,
    )


def samples(rows: int, *, masked: bool) -> SampleSet:
    return SampleSet(
        inputs={"input_ids": torch.arange(rows * 4).reshape(rows, 4), "pixels": torch.rand(rows, 2)[:, :1]},
        mask=torch.ones(rows, 4, dtype=torch.bool) if masked else None,
        labels=torch.arange(rows) if masked else None,
    )


def measurement() -> Measurement:
    return Measurement(
        kl=0.25,
        loss_before=1.5,
        loss_after=1.75,
        agreement=0.5,
        accuracy_before=None,
        accuracy_after=0.25,
        units=12,
        kl_by_sample=(0.125, 0.375),
        loss_increase_by_sample=(0.5, -0.25),
    )


@given(st.lists(st.text(max_size=5), max_size=3), st.lists(st.text(max_size=5), max_size=3))
def test_entries_are_the_same_exactly_when_their_keys_are(first: list[str], second: list[str]) -> None:
    with tempfile.TemporaryDirectory() as root:
        workspace = Workspace(root=Path(root))
        same = workspace.entry("kind", *first) == workspace.entry("kind", *second)
        assert same == (first == second)
        assert workspace.entry("other", *first) != workspace.entry("kind", *first)


def test_an_entry_is_finished_only_when_told(tmp_path: Path) -> None:
    entry = Workspace(root=tmp_path / "deep").entry("kind", "key")
    assert not is_finished(entry)
    finish(entry)
    assert is_finished(Workspace(root=tmp_path / "deep").entry("kind", "key"))


@pytest.mark.parametrize("masked", [True, False])
def test_a_calibration_set_reads_back(masked: bool, tmp_path: Path) -> None:
    drawn = CalibrationSet(
        calibration=samples(5, masked=masked),
        tuning=samples(9, masked=masked),
        probe=samples(2, masked=masked),
        evaluation=samples(3, masked=masked),
        source='a "text" naïve',
    )
    save_calibration_set(tmp_path, drawn)
    assert is_finished(tmp_path)
    read = load_calibration_set(tmp_path)
    assert read.digest == drawn.digest
    assert read.source == drawn.source
    assert (read.probe.mask is None) == (not masked)


@pytest.mark.parametrize("projections", [True, False])
def test_a_curve_reads_back(projections: bool, tmp_path: Path) -> None:
    saved = curve(projections=projections)
    save_curve(tmp_path, 3, saved)
    read = load_curve(tmp_path, 3, projections=True)
    assert read is not None
    assert (read.name, read.formats) == (saved.name, saved.formats)
    assert torch.equal(read.distortion, saved.distortion)
    assert torch.equal(read.row_noise, saved.row_noise)
    assert torch.equal(read.entropy_bytes, saved.entropy_bytes)
    if saved.projections is None:
        assert read.projections is None
    else:
        assert read.projections is not None
        assert torch.equal(read.projections, saved.projections)


def test_projections_are_left_out_when_they_are_not_asked_for(tmp_path: Path) -> None:
    save_curve(tmp_path, 0, curve())
    read = load_curve(tmp_path, 0, projections=False)
    assert read is not None
    assert read.projections is None


def test_a_missing_or_damaged_curve_is_none_so_that_it_is_measured_again(tmp_path: Path) -> None:
    assert load_curve(tmp_path, 0, projections=False) is None
    save_curve(tmp_path, 0, curve())
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    assert load_curve(tmp_path, 0, projections=True) is None
    path.write_bytes(b"")
    assert load_curve(tmp_path, 0, projections=True) is None


@pytest.mark.parametrize("format", [*FORMATS, AffineFormat(bits=8)], ids=str)
def test_some_rows_of_the_codes_read_back(format: RoundedFormat, tmp_path: Path) -> None:
    (saved,) = random_weight("w", (6, 40), [format], 1).segments
    assert isinstance(saved, AffineSegment | EntropySegment)
    save_codes(tmp_path, 2, saved)
    chosen = torch.tensor([0, 3, 5])
    read = load_codes(tmp_path, 2, format, chosen)
    assert read is not None
    assert same_segment(read, saved.part(chosen))
    assert load_codes(tmp_path, 1, format, chosen) is None
    assert load_codes(tmp_path, 2, EntropyFormat(bits=5.75), chosen) is None


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_damaged_codes_are_none_so_that_rows_are_rounded_again(format: RoundedFormat, tmp_path: Path) -> None:
    (saved,) = random_weight("w", (6, 40), [format], 1).segments
    assert isinstance(saved, AffineSegment | EntropySegment)
    save_codes(tmp_path, 0, saved)
    (path,) = (tmp_path / "codes").iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    assert load_codes(tmp_path, 0, format, torch.arange(6)) is None


def test_a_probe_reads_back(tmp_path: Path) -> None:
    raw = (0.1, 0.30000000000000004)
    probe = Probe(raw_kl_by_sequence=raw, raw_kl=0.2, measured=measurement(), bytes=77, counted_bytes=79)
    save_probe(tmp_path, probe)
    assert load_probe(tmp_path) == probe


def test_nothing_half_written_keeps_the_name_of_the_whole(tmp_path: Path) -> None:
    save_curve(tmp_path, 0, curve())
    save_probe(tmp_path, Probe(raw_kl_by_sequence=(), raw_kl=0.2, measured=measurement(), bytes=77, counted_bytes=77))
    assert [path for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_the_default_workspace_follows_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_workspace() == tmp_path / "guidedq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_workspace() == Path.home() / ".cache" / "guidedq"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), SafetensorError("I/O error: No space left on device (os error 28)")]
)
def test_a_full_disk_names_the_workspace(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"cannot write the workspace {tmp_path}: No space left"), storing(tmp_path):
        raise error


def test_other_errors_of_the_system_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storing(tmp_path):
        (tmp_path / "nothing").read_text()
    with pytest.raises(SafetensorError), storing(tmp_path):
        raise SafetensorError("header too small")
