"""The workspace: where measured things are kept, keyed by the content of everything they came from.

A second budget finds the guidance and the curves there; a killed run goes on from what it left. Nothing in it is
precious: deleting it only costs time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from guidedq import __version__
from guidedq.artifacts.activations import ActivationHistogram
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.forecast import Measurement, Probe
from guidedq.artifacts.quantized_weight import AffineSegment, EntropySegment, RoundedSegment
from guidedq.artifacts.samples import CalibrationSet, SampleSet
from guidedq.errors import OutputError
from guidedq.files import write_tensors, write_text
from guidedq.quant.formats import EntropyFormat, RoundedFormat, parse_format
from guidedq.quant.grid import Grid

LAYOUT_VERSION = 10
"""Part of every key: raise it when what is stored changes its meaning, and old entries are simply not found."""
UNWRITABLE = {number: os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)}
"""What the system says of a disk that takes no more."""
PARTS = ("calibration", "tuning", "probe", "evaluation")
"""Of a calibration set."""
KEY_LENGTH = 20
"""Hex digits of a key: 80 bits, no two entries of one workspace will ever meet."""


def default_workspace() -> Path:
    """The user's cache folder: `$XDG_CACHE_HOME/guidedq`, or `~/.cache/guidedq`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root else Path.home() / ".cache") / "guidedq"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A folder of entries; an entry belongs to one key for ever.

    Attributes:
        root: The folder, made when needed.
    """

    root: Path

    def entry(self, kind: str, *key: str) -> Path:
        """The folder of one entry: made of `kind` and a digest of `key`; may be empty or half filled."""
        text = json.dumps([LAYOUT_VERSION, __version__, kind, *key])
        folder = self.root / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@contextmanager
def storing(root: Path) -> Generator[None]:
    """Around work that writes into the workspace: a full or forbidden disk is said in words.

    Raises:
        OutputError: the workspace cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = next((text for number, text in UNWRITABLE.items() if _is(error, number)), None)
        if reason is None:
            raise
        raise OutputError(f"cannot write the workspace {root}: {reason}. Make room, or name another folder.") from error


def is_finished(folder: Path) -> bool:
    """Whether `finish` was called on this entry."""
    return (folder / "finished").exists()


def finish(folder: Path) -> None:
    """Mark an entry as whole."""
    (folder / "finished").touch()


def save_calibration_set(folder: Path, calibration: CalibrationSet) -> None:
    """Keep a calibration set."""
    for name in PARTS:
        part: SampleSet = getattr(calibration, name)
        tensors = {f"input.{key}": values.contiguous() for key, values in part.inputs.items()}
        optional = {"mask": part.mask, "labels": part.labels}
        tensors |= {key: values.contiguous() for key, values in optional.items() if values is not None}
        write_tensors(folder / f"{name}.safetensors", tensors)
    write_text(folder / "source.json", json.dumps({"source": calibration.source}))
    finish(folder)


def load_calibration_set(folder: Path) -> CalibrationSet:
    """Read what `save_calibration_set` kept."""
    parts: dict[str, SampleSet] = {}
    for name in PARTS:
        tensors = load_file(folder / f"{name}.safetensors")
        inputs = {key.removeprefix("input."): values for key, values in tensors.items() if key.startswith("input.")}
        parts[name] = SampleSet(inputs=inputs, mask=tensors.get("mask"), labels=tensors.get("labels"))
    source: str = json.loads((folder / "source.json").read_text())["source"]
    return CalibrationSet(**parts, source=source)


def save_curve(folder: Path, number: int, curve: SiteCurve) -> None:
    """Keep one site's curve."""
    tensors = {name: getattr(curve, name) for name in ("distortion", "row_noise", "entropy_bytes")}
    if curve.projections is not None:
        tensors["projections"] = curve.projections
    metadata = {"name": curve.name, "formats": ";".join(map(str, curve.formats))}
    write_tensors(_curve_file(folder, number), tensors, metadata)


def load_curve(folder: Path, number: int, *, projections: bool) -> SiteCurve | None:
    """Read one site's curve, with or without its projections; `None` if there is none, or it is damaged."""
    try:
        with safe_open(_curve_file(folder, number), "pt") as file:
            metadata = file.metadata()
            names = set(file.keys())
            return SiteCurve(
                name=metadata["name"],
                formats=tuple(map(parse_format, metadata["formats"].split(";"))),
                distortion=file.get_tensor("distortion"),
                row_noise=file.get_tensor("row_noise"),
                entropy_bytes=file.get_tensor("entropy_bytes"),
                projections=file.get_tensor("projections") if projections and "projections" in names else None,
            )
    except (OSError, SafetensorError):
        return None


def save_codes(folder: Path, number: int, segment: RoundedSegment) -> None:
    """Keep one site's rows in one format."""
    if isinstance(segment, EntropySegment):
        names = ("codes", "row_exponents", "column_exponents")
        write_tensors(_codes_file(folder, number, segment.format), {name: getattr(segment, name) for name in names})
        return
    tensors = {
        "codes": segment.codes,
        "scales": segment.grid.scales,
        "zero_points": segment.grid.zero_points,
        "outlier_columns": segment.outlier_columns,
        "outlier_values": segment.outlier_values,
    }
    write_tensors(_codes_file(folder, number, segment.format), tensors)


def load_codes(folder: Path, number: int, format: RoundedFormat, rows: Tensor) -> RoundedSegment | None:
    """Some of one site's rows in one format; `None` if they were not kept, or are damaged."""
    try:
        with safe_open(_codes_file(folder, number, format), "pt") as file:
            if isinstance(format, EntropyFormat):
                return EntropySegment(
                    format=format,
                    rows=rows,
                    codes=file.get_tensor("codes")[rows],
                    row_exponents=file.get_tensor("row_exponents")[rows],
                    column_exponents=file.get_tensor("column_exponents").clone(),  # a view would keep the file mapped
                )
            return AffineSegment(
                format=format,
                rows=rows,
                codes=file.get_tensor("codes")[rows],
                grid=Grid(scales=file.get_tensor("scales")[rows], zero_points=file.get_tensor("zero_points")[rows]),
                outlier_columns=file.get_tensor("outlier_columns")[rows],
                outlier_values=file.get_tensor("outlier_values")[rows],
            )
    except (OSError, SafetensorError):
        return None


def save_histograms(folder: Path, histograms: Sequence[ActivationHistogram]) -> None:
    """Keep histograms of activations, in order."""
    tensors = {
        f"{number:05d}.{name}": getattr(histogram, name)
        for number, histogram in enumerate(histograms)
        for name in ("counts", "sensitivity")
    }
    write_tensors(folder / "histograms.safetensors", tensors)
    write_text(folder / "ranges.json", json.dumps([[histogram.low, histogram.high] for histogram in histograms]))


def load_histograms(folder: Path) -> tuple[ActivationHistogram, ...]:
    """Read what `save_histograms` kept."""
    tensors = load_file(folder / "histograms.safetensors")
    ranges: list[tuple[float, float]] = json.loads((folder / "ranges.json").read_text())
    return tuple(
        ActivationHistogram(
            low=low, high=high, counts=tensors[f"{number:05d}.counts"], sensitivity=tensors[f"{number:05d}.sensitivity"]
        )
        for number, (low, high) in enumerate(ranges)
    )


def save_probe(folder: Path, probe: Probe) -> None:
    """Keep a probe."""
    write_text(folder / "probe.json", json.dumps(asdict(probe)))


def load_probe(folder: Path) -> Probe:
    """Read what `save_probe` kept."""
    content: dict[str, Any] = json.loads((folder / "probe.json").read_text())
    measured = content.pop("measured")
    for name in (name for name in measured if name.endswith("_by_sample")):
        measured[name] = tuple(measured[name])
    content["raw_kl_by_sequence"] = tuple(content["raw_kl_by_sequence"])
    return Probe(measured=Measurement(**measured), **content)


def _is(error: OSError | SafetensorError, number: int) -> bool:
    """Safetensors gives the system's error number in its text alone."""
    return error.errno == number if isinstance(error, OSError) else f"os error {number})" in str(error)


def _codes_file(folder: Path, number: int, format: RoundedFormat) -> Path:
    name = "".join(character if character.isalnum() else "-" for character in str(format))
    return folder / "codes" / f"{number:05d}-{name}.safetensors"


def _curve_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"
