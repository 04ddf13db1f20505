"""Choosing how a site is written: one place, used when bytes are counted and when the file is made."""

from __future__ import annotations

from collections.abc import Sequence

from guidedq.artifacts.quantized_weight import AffineSegment, EntropySegment, FloatSegment, QuantizedWeight
from guidedq.errors import FormatError
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat, Format
from guidedq.quant.nested import NestedFormat

from .convolution import write_dense, write_float
from .matmul import write_packed
from .packed import smallest_block
from .patch import Patch
from .qdq import write_qdq
from .settings import Settings
from .skeleton import Slot
from .streams import AffineRows, CodedRows, FloatRows, StoredRows

MOST_SEGMENTS = 4
"""Two bits a row say which segment it belongs to."""


def can_hold(slot: Slot, format: Format, settings: Settings) -> bool:
    """Whether rows of this format can be stored in the slot.

    Where nothing may be unpacked at load, what the runtime has no container for (a convolution) stays in floats.
    """
    if isinstance(format, FloatFormat):
        return True
    if isinstance(format, NestedFormat):
        return False
    if isinstance(format, EntropyFormat):
        return format.code == "rice" and settings.style == "native"
    if format.outliers:
        return False
    if settings.style == "qdq":
        return True
    return smallest_block(slot, [format]) is not None if slot.readers else settings.style == "native"


def segments_of(weight: QuantizedWeight) -> list[StoredRows]:
    """The segments as the writers take them.

    Raises:
        FormatError: a segment's codes are stored in a way that no graph unpacks.
    """
    found: list[StoredRows] = []
    for segment in weight.segments:
        count = len(segment.rows)
        if isinstance(segment, AffineSegment):
            found.append(AffineRows(format=segment.format, count=count, segment=segment))
        elif isinstance(segment, FloatSegment):
            found.append(FloatRows(format=segment.format, count=count, segment=segment))
        elif isinstance(segment, EntropySegment) and segment.format.code == "rice":
            found.append(CodedRows(format=segment.format, count=count, segment=segment))
        else:
            raise FormatError(f"{weight.name}: ONNX cannot hold {segment.format}.")
    return found


def rows_of(formats: Sequence[Format], count: int) -> list[StoredRows]:
    """Segments of `count` rows each, without data, to count the bytes of; of formats that a slot can hold."""
    return [
        AffineRows(format=format, count=count)
        if isinstance(format, AffineFormat)
        else CodedRows(format=format, count=count)
        if isinstance(format, EntropyFormat)
        else FloatRows(format=format, count=count)
        for format in formats
        if not isinstance(format, NestedFormat)
    ]


def write_site(patch: Patch, slot: Slot, segments: Sequence[StoredRows], settings: Settings) -> bool:
    """Put a site into the patch.

    Returns:
        Whether the nodes that read it are replaced; else they read the restored weight under its old name.

    Raises:
        FormatError: a segment's format is not one that `can_hold` allows.
    """
    first = segments[0]
    if len(segments) == 1 and isinstance(first, FloatRows):
        write_float(patch, slot, first)
        return False
    affine = [rows for rows in segments if isinstance(rows, AffineRows)]
    for rows in affine:
        if not can_hold(slot, rows.format, settings):
            raise FormatError(f"{slot.site.name}: the onnx backend cannot hold {rows.format} here.")
    if settings.style == "qdq" and isinstance(first, AffineRows):
        return write_qdq(patch, slot, first, settings)
    if slot.readers and len(affine) == len(segments):
        write_packed(patch, slot, affine, settings)
        return True
    write_dense(patch, slot, segments, settings)
    return False
