"""Storing the rows of one segment: their packed codes, and the calls that unpack them while the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import final

import numpy as np

from guidedq.artifacts.quantized_weight import AffineSegment, EntropySegment, FloatSegment
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat

from .layout import BYTE_BITS, Stream, container_bytes
from .patch import Patch
from .settings import Settings

ORDER_BITS = 2
"""Bits that say which segment a row belongs to: up to four segments."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AffineRows:
    """Some rows in an affine format; `segment` is `None` while bytes are only counted."""

    format: AffineFormat
    count: int
    segment: AffineSegment | None = None

    @property
    def codes(self) -> np.ndarray:
        """The codes, `[n, in]`."""
        assert self.segment is not None
        return self.segment.codes.numpy()

    @property
    def zero_points(self) -> np.ndarray:
        """The zero points to be stored, `[n, groups]`; no column if the format is symmetric."""
        assert self.segment is not None
        stored = self.segment.grid.zero_points.numpy()
        return stored[:, :0] if self.format.symmetric else stored

    @property
    def scales(self) -> np.ndarray:
        """The scales, fp16, `[n, groups]`."""
        assert self.segment is not None
        return self.segment.grid.scales.numpy()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FloatRows:
    """Some rows in floating point; `segment` is `None` while bytes are only counted."""

    format: FloatFormat
    count: int
    segment: FloatSegment | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CodedRows:
    """All rows of a site, in an entropy format; `segment` is `None` while bytes are only counted."""

    format: EntropyFormat
    count: int
    segment: EntropySegment | None = None


StoredRows = AffineRows | CodedRows | FloatRows


def stream_of(format: AffineFormat, container: int, columns: int) -> Stream:
    """The stored form of rows in this format."""
    zero_points = 0 if format.symmetric else format.groups(columns)
    return Stream(bits=format.bits, container=container, columns=columns, zero_points=zero_points)


def store_stream(patch: Patch, rows: AffineRows, container: int, columns: int, settings: Settings) -> str:
    """Store codes and zero points; gives the name of the flat container bytes, with bytes to spare at the end.

    Without bitwise operators the bytes hold one code each, whatever the container.
    """
    stream = stream_of(rows.format, container if settings.bitwise else BYTE_BITS, columns)
    return store_parts(patch, stream, rows.count, lambda: stream.pack(rows.codes, rows.zero_points), settings)


def store_parts(
    patch: Patch, stream: Stream, rows: int, pack: Callable[[], tuple[np.ndarray, ...]], settings: Settings
) -> str:
    """Store the parts of so many rows, and join them; gives the name of the flat container bytes."""
    packed = cache(pack)
    stored = [
        patch.store(np.uint8, (stream.part_bytes(part, rows),), lambda index=index: packed()[index])
        for index, part in enumerate(stream.parts)
    ]
    if stream.parts == (stream.container,):
        return stored[0]
    inputs = [
        [name, *part_constants(patch, stream, part, settings)] for name, part in zip(stored, stream.parts, strict=True)
    ]
    if len(inputs) == 1:
        return patch.call("Part", inputs[0])
    joins = [patch.constant(np.array(part, dtype=np.uint8)) for part in stream.parts[1:]]
    unpacked = patch.call("Pair", [*inputs[0], *inputs[1], joins[0]])
    for further, join in zip(inputs[2:], joins[1:], strict=True):
        unpacked = patch.call("Join", [unpacked, *further, join])
    return unpacked


def store_scales(patch: Patch, rows: AffineRows, columns: int) -> str:
    """Store the fp16 scales `[n, groups]`."""
    return patch.store(np.float16, (rows.count, rows.format.groups(columns)), lambda: rows.scales)


def store_order(patch: Patch, segments: Sequence[StoredRows], rows: int) -> str:
    """Store which segment each of the site's rows belongs to; gives the rows' places in the joined segments."""
    count = sum(segment.count for segment in segments)

    def belongs() -> np.ndarray:
        index = np.zeros((1, count), dtype=np.uint8)
        for number, part in enumerate(segments):
            assert part.segment is not None
            index[0, part.segment.rows.numpy()] = number
        return container_bytes(index, ORDER_BITS)

    stored = patch.store(np.uint8, (1, -(-count * ORDER_BITS // BYTE_BITS)), belongs)
    shifts = lane_shifts(patch, ORDER_BITS)
    bounds = [patch.integers(-1), patch.integers(0), patch.integers(rows)]
    return patch.call("Order", [stored, patch.integers(2), *shifts, *bounds])


def lane_shifts(patch: Patch, bits: int) -> tuple[str, str]:
    """Shifts, to the left and back, that leave each slot of `bits` bits of a byte alone."""
    left = np.arange(BYTE_BITS - bits, -1, -bits, dtype=np.uint8)
    return patch.constant(left), patch.constant(np.array(BYTE_BITS - bits, dtype=np.uint8))


def part_constants(patch: Patch, stream: Stream, part: int, settings: Settings) -> tuple[str, str]:
    """Shifts and mask of a part; without bitwise operators left shifts that drop what is above, and the shift back."""
    if settings.bitwise:
        return patch.constant(stream.shifts(part)), patch.constant(stream.mask(part))
    down = BYTE_BITS - part
    return patch.constant(np.uint8(down) - stream.shifts(part)), patch.constant(np.array(down, dtype=np.uint8))
