"""How one weight lies in one blob of bytes. All integers are little-endian; nothing is aligned; nothing is left over.

 1. Byte 0 is 0x72: the layout's version. A reader refuses any other.
 2. Byte 1 is the number of segments, 1 to 8. No two segments have one format, and none is empty.
 3. Then 9 bytes per segment: kind (1 byte), group size (2), outliers per row (2), rows (4).
 4. Kind of an affine format: its bits, 1 to 8, plus 0x10 if symmetric. Float formats: 0x20 fp16, 0x21 bf16, 0x22 fp32,
    with group size and outliers zero. Entropy formats: 0x30; four times the nominal bits in place of the group size; in
    place of the outliers 1 if the columns have scales, the same in all such segments of a blob. Patched formats: 0x30
    plus their bits, 1 to 8; in place of the group size 1 if the columns have scales; patches for outliers.
 5. With more than one segment follows the segment number of every row, 3 bits each, as one bit stream padded to a byte.
    The rows of a segment are those that carry its number, ascending. With one segment there is no such index.
 6. If the columns have scales these follow: 4 bits `v` each, as one bit stream padded to a byte, for the exponent
    `192 + 4 * (v - 8)` (see `exponents.py`). Without them every column has the exponent 192, the scale 1.
 7. Then the data of each segment, in the order of the headers; `n` is its number of rows, `in` the weight's columns.
 8. Affine: codes, `n` bit streams of `in` codes (see `bit_stream.py`), each padded to a byte;
 9. scales, fp16 `[n, groups]`;
10. zero points, unless symmetric: `n` bit streams of `groups` codes, each padded to a byte;
11. columns of the outliers, unsigned 16-bit `[n, outliers]`, strictly ascending in each row;
12. values of the outliers, fp16 `[n, outliers]`.
13. Entropy: the stream's length (4 bytes), the stream (see `entropy.py`; columns in the order of their scales, equal
    ones in their own). Then the scales of the rows, a byte each.
14. Float: the values `[n, in]`.
15. Kind of a nested format (see `nested.py`): 0x40, always the only segment; the group size; in place of the outliers
    the set of its widths, bit `k - 1` for width `k`. Its data: for each width the bits that it adds to the one before,
    from the top, as codes of their own, `n` bit streams; scales and zero points as in 9 and 10; the narrower widths'
    ratios, fp16; for each of these a bit stream of `n` shifts of 3 bits, padded to a byte.
16. Patched (see `patched.py`), written in memory only, read anywhere: codes, `n` bit streams; scales of the rows, a
    byte each; a byte each for what the row is stored as: 32 times the number of its segment there, plus four times its
    nominal bits; columns of the patches, unsigned 16-bit `[n, patches]`; the patches, signed 8-bit. A code and its
    patch make a byte; of two patches with one column, one is zero.

Blobs on disk hold streams; in memory they hold patched codes in their place, so that rows can be read one by one.
Without streams a blob takes `blob_bytes`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from jaxtyping import UInt8
from torch import Tensor

from guidedq.errors import ArtifactError, FormatError
from guidedq.quant.byte_counts import packed_width
from guidedq.quant.formats import (
    ENTROPY_STEPS_PER_BIT,
    AffineFormat,
    EntropyFormat,
    FloatFormat,
    Format,
)
from guidedq.quant.nested import NestedFormat
from guidedq.quant.patched import COLUMN_BYTES, PATCH_BYTES, WIDEST, PatchedFormat

LAYOUT_VERSION = 0x72
PREFIX_BYTES = 2
SEGMENT_HEADER = struct.Struct("<BHHI")
MAXIMUM_SEGMENTS = 8
INDEX_BITS = 3
"""Enough for `MAXIMUM_SEGMENTS`, and one width for any number of them, so that bytes per row do not depend on it."""
OUTLIER_COLUMNS = 65536
"""A 16-bit column index reaches no further."""

COLUMN_BITS = 4
COLUMN_ZERO = 8
COLUMN_STEP = 4
"""Columns' scales differ by half octaves: finer ones would gain a percent."""
STREAM_HEADER = struct.Struct("<I")
NUMBER_SHIFT = 5
"""What a patched row is stored as (16): the segment's number stands above so many bits."""

_SYMMETRIC = 0x10
_ENTROPY = 0x30
_NESTED = 0x40
_FLOAT_KINDS: dict[int, Literal["fp16", "bf16", "fp32"]] = {0x20: "fp16", 0x21: "bf16", 0x22: "fp32"}


HeldFormat = Format | PatchedFormat
"""Those of segments on disk and in memory."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentLayout:
    """Where one segment's data lie.

    Attributes:
        format: The format of its rows.
        rows: How many.
        offset: First byte of its data in the blob.
        stream_bytes: Length of its stream of codes, 0 if it has none.
    """

    format: HeldFormat
    rows: int
    offset: int
    stream_bytes: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BlobLayout:
    """Where everything lies in one blob.

    Attributes:
        name: The site's name, for messages.
        shape: `(out, in)` of the weight.
        segments: One to eight.
        index_offset: First byte of the rows' segment numbers; meaningless with one segment.
        columns_offset: First byte of the columns' scales, `None` if they have none.
    """

    name: str
    shape: tuple[int, int]
    segments: tuple[SegmentLayout, ...]
    index_offset: int
    columns_offset: int | None

    @property
    def has_streams(self) -> bool:
        """Whether rows cannot be read one by one."""
        return any(part.stream_bytes for part in self.segments)


def region_widths(format: HeldFormat, columns: int) -> tuple[int, ...]:
    """Bytes per row of each region of a segment but its stream, in their order (8 to 12, 13, 14, 15, or 16)."""
    if isinstance(format, FloatFormat):
        return (format.row_bytes(columns),)
    if isinstance(format, EntropyFormat):
        return (1,)
    if isinstance(format, PatchedFormat):
        return packed_width(columns, format.bits), 1, 1, COLUMN_BYTES * format.patches, PATCH_BYTES * format.patches
    groups = format.groups(columns)
    if isinstance(format, NestedFormat):
        layers = (packed_width(columns, bits) for bits in format.layers)
        return *layers, 2 * groups, packed_width(groups, format.widest)
    zero_points = 0 if format.symmetric else packed_width(groups, format.bits)
    return packed_width(columns, format.bits), 2 * groups, zero_points, 2 * format.outliers, 2 * format.outliers


def index_bytes(rows: int, segments: int) -> int:
    """Bytes of the rows' segment numbers."""
    return packed_width(rows, INDEX_BITS) if segments > 1 else 0


def columns_bytes(columns: int) -> int:
    """Bytes of the columns' scales."""
    return packed_width(columns, COLUMN_BITS)


def blob_bytes(columns: int, segments: Sequence[tuple[HeldFormat, int]], *, scaled: bool = False) -> int:
    """Bytes of a blob but its streams, with so many rows in each format, and with scales of the columns if `scaled`."""
    rows = sum(count for _, count in segments)
    header = PREFIX_BYTES + SEGMENT_HEADER.size * len(segments) + index_bytes(rows, len(segments))
    header += columns_bytes(columns) if scaled else 0
    return header + sum(_segment_bytes(format, count, columns) for format, count in segments)


def write_header(segments: Sequence[tuple[HeldFormat, int]], columns: int, *, scaled: bool) -> bytes:
    """The bytes of lines 1 to 4.

    Raises:
        FormatError: too many segments, two of one format, an empty one, or outliers that the columns cannot hold.
    """
    formats = [format for format, _ in segments]
    if not 1 <= len(segments) <= MAXIMUM_SEGMENTS or len(set(formats)) < len(segments):
        raise FormatError(
            f"a weight has 1 to {MAXIMUM_SEGMENTS} segments of distinct formats, found {list(map(str, formats))}."
        )
    for format, rows in segments:
        if problem := _problem(format, rows, columns):
            raise FormatError(problem)
    headers = [_segment_header(format, rows, scaled=scaled) for format, rows in segments]
    return bytes((LAYOUT_VERSION, len(segments))) + b"".join(headers)


def read_layout(blob: UInt8[Tensor, "bytes"], name: str, shape: tuple[int, int]) -> BlobLayout:
    """Read and check lines 1 to 4, and that the blob is exactly as long as they say.

    Args:
        blob: The bytes.
        name: The site's name, for messages.
        shape: `(out, in)` that the weight must have.

    Raises:
        ArtifactError: the blob is no such weight.
    """
    rows, columns = shape
    start = bytes(blob[: PREFIX_BYTES + SEGMENT_HEADER.size * MAXIMUM_SEGMENTS].tolist())
    _expect(len(start) >= PREFIX_BYTES, name, f"at least {PREFIX_BYTES} bytes", len(start))
    _expect(start[0] == LAYOUT_VERSION, name, f"layout version {LAYOUT_VERSION}", start[0])
    _expect(1 <= start[1] <= MAXIMUM_SEGMENTS, name, f"1 to {MAXIMUM_SEGMENTS} segments", start[1])
    index_offset = PREFIX_BYTES + SEGMENT_HEADER.size * start[1]
    _expect(len(start) >= index_offset, name, f"a header of {index_offset} bytes", len(start))
    heads = list(SEGMENT_HEADER.iter_unpack(start[PREFIX_BYTES:index_offset]))
    parts = [_read_segment_header(values, name) for values in heads]
    _expect(len({format for format, _, _ in parts}) == len(parts), name, "segments of distinct formats", parts)
    for format, count, _ in parts:
        problem = _problem(format, count, columns)
        _expect(problem is None, name, "segments that fit the weight", problem)
    counted = sum(count for _, count, _ in parts)
    _expect(counted == rows, name, f"{rows} rows in segments", counted)
    nested = any(isinstance(format, NestedFormat) for format, _, _ in parts)
    _expect(not nested or len(parts) == 1, name, "a nested segment alone", parts)
    columns_offset = index_offset + index_bytes(rows, len(parts))
    marks = {_scale_mark(head) for head in heads} - {None}
    _expect(len(marks) < 2, name, "columns with scales or without", marks)
    scaled = marks == {1}
    offset = columns_offset + (columns_bytes(columns) if scaled else 0)
    segments: list[SegmentLayout] = []
    for format, count, has_stream in parts:
        stream_bytes = _stream_bytes(blob, offset, name) if has_stream else 0
        segments.append(SegmentLayout(format=format, rows=count, offset=offset, stream_bytes=stream_bytes))
        offset += _segment_bytes(format, count, columns)
        if has_stream:
            offset += STREAM_HEADER.size + stream_bytes
    _expect(offset == len(blob), name, f"{offset} bytes", len(blob))
    return BlobLayout(
        name=name,
        shape=shape,
        segments=tuple(segments),
        index_offset=index_offset,
        columns_offset=columns_offset if scaled else None,
    )


def _segment_bytes(format: HeldFormat, rows: int, columns: int) -> int:
    refit = format.refit_bytes(rows) if isinstance(format, NestedFormat) else 0
    return rows * sum(region_widths(format, columns)) + refit


def _stream_bytes(blob: UInt8[Tensor, "bytes"], offset: int, name: str) -> int:
    head = bytes(blob[offset : offset + STREAM_HEADER.size].tolist())
    _expect(len(head) == STREAM_HEADER.size, name, "the length of a stream", len(head))
    found: int = STREAM_HEADER.unpack(head)[0]
    _expect(found > 0, name, "a stream", found)
    return found


def damaged(name: str, expected: str, found: object) -> ArtifactError:
    """The error for a blob that is not what it should be."""
    return ArtifactError(
        f"{name}: the packed weight is damaged: expected {expected}, found {found}. Write the artifact anew."
    )


def _segment_header(format: HeldFormat, rows: int, *, scaled: bool) -> bytes:
    if isinstance(format, FloatFormat):
        kind = next(kind for kind, dtype in _FLOAT_KINDS.items() if dtype == format.dtype)
        return SEGMENT_HEADER.pack(kind, 0, 0, rows)
    if isinstance(format, EntropyFormat):
        return SEGMENT_HEADER.pack(_ENTROPY, round(format.bits * ENTROPY_STEPS_PER_BIT), int(scaled), rows)
    if isinstance(format, PatchedFormat):
        return SEGMENT_HEADER.pack(_ENTROPY + format.bits, int(scaled), format.patches, rows)
    if isinstance(format, NestedFormat):
        return SEGMENT_HEADER.pack(_NESTED, format.group_size, sum(1 << width - 1 for width in format.widths), rows)
    kind = format.bits | (_SYMMETRIC if format.symmetric else 0)
    return SEGMENT_HEADER.pack(kind, format.group_size, format.outliers, rows)


def _scale_mark(head: tuple[int, ...]) -> int | None:
    """Whether a header says that columns have scales, 1 or 0; none of other kinds."""
    kind, group_size, outliers, _ = head
    if kind == _ENTROPY:
        return outliers
    return group_size if _ENTROPY < kind <= _ENTROPY + WIDEST else None


def _read_segment_header(values: tuple[int, ...], name: str) -> tuple[HeldFormat, int, bool]:
    """Format, rows, and whether the codes are a stream."""
    kind, group_size, outliers, rows = values
    if kind in _FLOAT_KINDS:
        _expect(
            not group_size and not outliers, name, "no groups or outliers in a float segment", (group_size, outliers)
        )
        return FloatFormat(dtype=_FLOAT_KINDS[kind]), rows, False
    try:
        if (mark := _scale_mark(values)) is not None:
            _expect(mark in (0, 1), name, "columns with scales or without", mark)
        if kind == _ENTROPY:
            return EntropyFormat(bits=group_size / ENTROPY_STEPS_PER_BIT), rows, True
        if _ENTROPY < kind <= _ENTROPY + WIDEST:
            return PatchedFormat(bits=kind - _ENTROPY, patches=outliers), rows, False
        if kind == _NESTED:
            widths = tuple(width for width in range(1, 17) if outliers >> (width - 1) & 1)
            return NestedFormat(widths=widths, group_size=group_size, precision=max(widths, default=0)), rows, False
        symmetric = bool(kind & _SYMMETRIC)
        format = AffineFormat(bits=kind & ~_SYMMETRIC, group_size=group_size, symmetric=symmetric, outliers=outliers)
        return format, rows, False
    except FormatError as error:
        raise damaged(name, "a known format", f"kind {kind}") from error


def _problem(format: HeldFormat, rows: int, columns: int) -> str | None:
    """Why a segment cannot be, if it cannot."""
    if not 0 < rows < 2**32:
        return f"{format}: a segment of {rows} rows."
    single = format.outliers if isinstance(format, AffineFormat) else 0
    single = format.patches if isinstance(format, PatchedFormat) else single
    if single > columns or (single and columns > OUTLIER_COLUMNS):
        what = "patches" if isinstance(format, PatchedFormat) else "outliers"
        return f"{format}: {single} {what} in rows of {columns} columns (at most {OUTLIER_COLUMNS} can be indexed)."
    return None


def _expect(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise damaged(name, expected, found)
