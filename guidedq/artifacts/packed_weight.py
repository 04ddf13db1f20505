"""A quantized weight as one blob of bytes, and back; rows can be read one by one. The layout: `quant/packing.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from guidedq.artifacts.nested_segment import NestedSegment
from guidedq.artifacts.patched_segment import PatchedSegment, patch, restore
from guidedq.artifacts.quantized_weight import (
    FLOAT_DTYPES,
    AffineSegment,
    EntropySegment,
    FloatSegment,
    QuantizedWeight,
    Segment,
)
from guidedq.errors import FormatError
from guidedq.quant.bit_stream import pack_codes, unpack_codes
from guidedq.quant.entropy import column_order, decode_codes, encode_codes
from guidedq.quant.exponents import ONE
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat
from guidedq.quant.grid import Grid
from guidedq.quant.nested import RATIO_BYTES, SHIFT_BITS, NestedFormat
from guidedq.quant.packing import (
    COLUMN_BITS,
    COLUMN_STEP,
    COLUMN_ZERO,
    INDEX_BITS,
    STREAM_HEADER,
    BlobLayout,
    SegmentLayout,
    columns_bytes,
    damaged,
    index_bytes,
    read_layout,
    region_widths,
    write_header,
)
from guidedq.quant.patched import CODES_AT_ONCE, PatchedFormat, narrow, widen


def pack_weight(weight: QuantizedWeight, *, streams: bool = True) -> UInt8[Tensor, "bytes"]:
    """Write a weight as one blob.

    Args:
        weight: What to write.
        streams: Store entropy segments by their entropy; otherwise as patched ones, to be read row by row.

    Raises:
        FormatError: the weight breaks its own rules (codes too large, rows twice or unordered), or has many segments.
    """
    _check(weight)
    segments = weight.segments if streams else patch(weight.segments)
    formats = [(part.format, len(part.rows)) for part in segments]
    scales = next((part.column_exponents for part in weight.segments if isinstance(part, EntropySegment)), None)
    scaled = scales is not None and bool((scales != ONE).any())
    header = write_header(formats, weight.shape[1], scaled=scaled)
    parts = [_tensor_of(header)]
    if len(segments) > 1:
        numbers = torch.empty(1, weight.shape[0], dtype=torch.uint8)
        for number, part in enumerate(segments):
            numbers[0, part.rows] = number
        parts.append(pack_codes(numbers, INDEX_BITS))
    if scales is not None and scaled:
        steps = (scales.int() - ONE) // COLUMN_STEP + COLUMN_ZERO
        parts.append(pack_codes(steps.to(torch.uint8)[None], COLUMN_BITS))
    for part in segments:
        parts.extend(_regions(part))
    return torch.cat([part.reshape(-1) for part in parts])


def unpack_weight(blob: UInt8[Tensor, "bytes"], name: str, shape: tuple[int, int]) -> QuantizedWeight:
    """Read what `pack_weight` wrote.

    Raises:
        ArtifactError: the blob is damaged, or holds a weight of another shape.
    """
    layout = read_layout(blob, name, shape)
    rows = segment_rows(blob, name, layout)
    parts = [read_segment(blob, layout, part, own) for part, own in zip(layout.segments, rows, strict=True)]
    try:
        segments = restore(parts)
    except FormatError as error:
        raise damaged(name, "rows that are stored in known segments", error) from error
    for segment in segments:
        check_segment(segment, name, shape[1])
    return QuantizedWeight(name=name, shape=shape, segments=segments)


def segment_rows(blob: UInt8[Tensor, "bytes"], name: str, layout: BlobLayout) -> tuple[Int64[Tensor, "n"], ...]:
    """The rows of each segment, ascending.

    Raises:
        ArtifactError: the rows' segment numbers disagree with the segments' headers.
    """
    count, rows = len(layout.segments), layout.shape[0]
    if count == 1:
        return (torch.arange(rows, device=blob.device),)
    index = blob[layout.index_offset : layout.index_offset + index_bytes(rows, count)]
    numbers = unpack_codes(index[None], INDEX_BITS, rows)[0]
    found = numbers.bincount(minlength=count).tolist()
    expected = [part.rows for part in layout.segments]
    if found != expected:
        raise damaged(name, f"{expected} rows by segment", found)
    return tuple((numbers == number).nonzero()[:, 0] for number in range(count))


def read_segment(
    blob: UInt8[Tensor, "bytes"],
    layout: BlobLayout,
    part: SegmentLayout,
    rows: Int64[Tensor, "n"],
    places: Int64[Tensor, "n"] | slice | None = None,
) -> Segment | PatchedSegment:
    """Read the rows of one segment, on the blob's device.

    Args:
        blob: The whole weight.
        layout: Of the blob.
        part: Where the segment lies.
        rows: What the rows read are called in the result.
        places: Which of the segment's rows to read, in any order and number; all by default.

    Raises:
        ArtifactError: the segment's stream is damaged, or its patches are.
    """
    columns = layout.shape[1]
    widths = region_widths(part.format, columns)
    offset = part.offset
    regions: list[Tensor] = []
    if part.stream_bytes:
        regions.append(_decoded(blob, layout, part))
        offset += STREAM_HEADER.size + part.stream_bytes
    for width in widths:
        regions.append(blob[offset : offset + part.rows * width].view(part.rows, width))
        offset += part.rows * width
    if isinstance(part.format, NestedFormat):
        refit = blob[offset : offset + part.format.refit_bytes(part.rows)]
        whole = _nested_segment(
            regions, refit, part.format, rows if places is None else torch.arange(part.rows), columns
        )
        return whole if places is None else replace(whole.part(places), rows=rows)
    if places is not None:
        regions = [region[places] for region in regions]
    if isinstance(part.format, FloatFormat):
        values = _values_of(regions[0], FLOAT_DTYPES[part.format.dtype])
        return FloatSegment(format=part.format, rows=rows, values=values)
    if isinstance(part.format, EntropyFormat):
        return EntropySegment(
            format=part.format,
            rows=rows,
            codes=regions[0],
            row_exponents=regions[1][:, 0],
            column_exponents=_column_exponents(blob, layout),
        )
    if isinstance(part.format, PatchedFormat):
        return _patched_segment(regions, part.format, rows, _column_exponents(blob, layout), layout.name)
    return AffineSegment(
        format=part.format,
        rows=rows,
        codes=unpack_codes(regions[0], part.format.bits, columns),
        grid=_grid(regions[1], regions[2], part.format, columns),
        outlier_columns=_columns_of(regions[3]),
        outlier_values=_values_of(regions[4], torch.float16),
    )


def _patched_segment(
    regions: Sequence[Tensor], format: PatchedFormat, rows: Tensor, column_exponents: Tensor, name: str
) -> PatchedSegment:
    codes, row_exponents, stored_as, at, patches = regions
    columns = _columns_of(at)
    narrow_codes = unpack_codes(codes, format.bits, len(column_exponents))
    try:
        whole = widen(narrow_codes, columns, patches.contiguous().view(torch.int8), format.bits)
    except FormatError as error:
        raise damaged(name, "patches that lead to codes", error) from error
    return PatchedSegment(
        format=format,
        rows=rows,
        codes=whole,
        row_exponents=row_exponents[:, 0],
        column_exponents=column_exponents,
        stored_as=stored_as[:, 0],
    )


def _columns_of(region: Tensor) -> Int64[Tensor, "n columns"]:
    return region[:, 0::2].long() | region[:, 1::2].long() << 8


def _column_bytes(columns: Int64[Tensor, "n columns"]) -> Tensor:
    return torch.stack((columns & 255, columns >> 8), dim=-1).to(torch.uint8)


def _column_exponents(blob: UInt8[Tensor, "bytes"], layout: BlobLayout) -> UInt8[Tensor, "in"]:
    columns = layout.shape[1]
    if layout.columns_offset is None:
        return torch.full((columns,), ONE, dtype=torch.uint8, device=blob.device)
    packed = blob[layout.columns_offset : layout.columns_offset + columns_bytes(columns)]
    steps = unpack_codes(packed[None], COLUMN_BITS, columns)[0].int()
    return (ONE + COLUMN_STEP * (steps - COLUMN_ZERO)).to(torch.uint8)


def _decoded(blob: UInt8[Tensor, "bytes"], layout: BlobLayout, part: SegmentLayout) -> UInt8[Tensor, "n in"]:
    start = part.offset + STREAM_HEADER.size
    stream = blob[start : start + part.stream_bytes].cpu().numpy().tobytes()
    try:
        codes = decode_codes(stream, part.rows, column_order(_column_exponents(blob, layout).cpu()))
    except FormatError as error:
        raise damaged(layout.name, "a stream of codes", error) from error
    return codes.to(blob.device)


def check_segment(segment: Segment, name: str, columns: int) -> None:
    """Refuse numbers that no rounder writes: they would break the dequantization, or spread as NaN.

    Raises:
        ArtifactError: a number is not finite, a scale not positive, or outliers do not stand in rising columns.
    """
    if isinstance(segment, FloatSegment):
        if not bool(torch.isfinite(segment.values).all()):
            raise damaged(name, "finite values", "NaN or infinity")
        return
    if isinstance(segment, EntropySegment):
        return
    scales = segment.grid.scales
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise damaged(name, "positive finite scales", "others")
    if isinstance(segment, NestedSegment):
        if not bool((torch.isfinite(segment.ratios) & (segment.ratios > 0)).all()):
            raise damaged(name, "positive finite ratios of scales", "others")
        return
    if not bool(torch.isfinite(segment.outlier_values).all()):
        raise damaged(name, "finite outliers", "NaN or infinity")
    if not _rising(segment.outlier_columns, columns):
        raise damaged(name, f"outlier columns that rise below {columns}", "others")


def _check(weight: QuantizedWeight) -> None:
    rows = torch.cat([part.rows for part in weight.segments])
    ascending = all(bool((part.rows.diff() > 0).all()) for part in weight.segments)
    if not ascending or not torch.equal(rows.sort().values, torch.arange(weight.shape[0])):
        raise FormatError(f"{weight.name}: the rows of the segments do not ascend, or are not every row once.")
    for part in weight.segments:
        if isinstance(part, FloatSegment):
            fits = (
                part.values.shape == (len(part.rows), weight.shape[1])
                and part.values.dtype is FLOAT_DTYPES[part.format.dtype]
            )
        elif isinstance(part, EntropySegment):
            fits = _entropy_fits(part, weight)
        elif isinstance(part, NestedSegment):
            fits = len(weight.segments) == 1 and _nested_fits(part, weight.shape[1])
        else:
            fits = _affine_fits(part, weight.shape[1])
        if not fits:
            raise FormatError(f"{weight.name}: a segment does not hold what its format, {part.format}, says.")


def _affine_fits(part: AffineSegment, columns: int) -> bool:
    rows, format, grid = len(part.rows), part.format, part.grid
    middle = 2 ** (format.bits - 1)
    return (
        part.codes.shape == (rows, columns)
        and grid.scales.shape == grid.zero_points.shape == (rows, format.groups(columns))
        and part.outlier_columns.shape == part.outlier_values.shape == (rows, format.outliers)
        and int(part.codes.max()) < 2**format.bits
        and int(grid.zero_points.max()) < 2**format.bits
        and (not format.symmetric or bool((grid.zero_points == middle).all()))
        and _rising(part.outlier_columns, columns)
    )


def _nested_fits(part: NestedSegment, columns: int) -> bool:
    rows, format, grid = len(part.rows), part.format, part.grid
    narrower = len(format.widths) - 1
    return (
        part.codes.shape == (rows, columns)
        and grid.scales.shape == grid.zero_points.shape == (rows, format.groups(columns))
        and part.ratios.shape == (narrower,)
        and part.shifts.shape == (narrower, rows)
        and int(part.codes.max()) < 2**format.widest
        and int(grid.zero_points.max()) < 2**format.widest
        and int(part.shifts.max()) < 2**SHIFT_BITS
    )


def _entropy_fits(part: EntropySegment, weight: QuantizedWeight) -> bool:
    others = [other for other in weight.segments if isinstance(other, EntropySegment)]
    columns = part.column_exponents.int() - ONE
    steps = columns // COLUMN_STEP + COLUMN_ZERO
    return (
        part.codes.shape == (len(part.rows), weight.shape[1])
        and part.row_exponents.shape == (len(part.rows),)
        and part.column_exponents.shape == (weight.shape[1],)
        and all(torch.equal(part.column_exponents, other.column_exponents) for other in others)
        and bool((columns % COLUMN_STEP == 0).all())
        and bool(((steps >= 0) & (steps < 2**COLUMN_BITS)).all())
    )


def _rising(columns_of_rows: Int64[Tensor, "n outliers"], columns: int) -> bool:
    inside = (columns_of_rows >= 0) & (columns_of_rows < columns)
    return bool(inside.all()) and bool((columns_of_rows.diff(dim=1) > 0).all())


def _regions(part: Segment | PatchedSegment) -> list[Tensor]:
    if isinstance(part, FloatSegment):
        return [_bytes_of(part.values)]
    if isinstance(part, AffineSegment):
        return _affine_regions(part)
    if isinstance(part, NestedSegment):
        return _nested_regions(part)
    if isinstance(part, PatchedSegment):
        return _patched_regions(part)
    stream = encode_codes(part.codes, column_order(part.column_exponents))
    return [_tensor_of(STREAM_HEADER.pack(len(stream)) + stream), part.row_exponents]


def _affine_regions(part: AffineSegment) -> list[Tensor]:
    codes, bits = pack_codes(part.codes, part.format.bits), part.format.bits
    zero_points = [] if part.format.symmetric else [pack_codes(part.grid.zero_points, bits)]
    columns = _column_bytes(part.outlier_columns)
    return [codes, _bytes_of(part.grid.scales), *zero_points, columns, _bytes_of(part.outlier_values)]


def _patched_regions(part: PatchedSegment) -> list[Tensor]:
    packed, columns, patches = [], [], []
    for codes in part.codes.split(max(1, CODES_AT_ONCE // part.codes.shape[1])):
        narrowed, at, added = narrow(codes, part.format)
        packed.append(pack_codes(narrowed, part.format.bits))
        columns.append(_column_bytes(at))
        patches.append(added.view(torch.uint8))
    return [torch.cat(packed), part.row_exponents, part.stored_as, torch.cat(columns), torch.cat(patches)]


def _nested_regions(part: NestedSegment) -> list[Tensor]:
    """The layers from the top, the grid of the widest width, and the refit of the others."""
    format = part.format
    layers = [
        pack_codes(part.codes >> format.widest - width, bits)
        for width, bits in zip(format.widths, format.layers, strict=True)
    ]
    zero_points = pack_codes(part.grid.zero_points, format.widest)
    return [
        *layers,
        _bytes_of(part.grid.scales),
        zero_points,
        _bytes_of(part.ratios),
        pack_codes(part.shifts, SHIFT_BITS),
    ]


def _nested_segment(
    regions: Sequence[Tensor], refit: Tensor, format: NestedFormat, rows: Tensor, columns: int
) -> NestedSegment:
    codes = torch.zeros(len(rows), columns, dtype=torch.uint8, device=refit.device)
    for region, bits in zip(regions, format.layers, strict=False):
        codes = codes << bits | unpack_codes(region, bits, columns)
    narrower = len(format.widths) - 1
    ratios, shifts = refit[: RATIO_BYTES * narrower], refit[RATIO_BYTES * narrower :].view(narrower, -1)
    return NestedSegment(
        format=format,
        rows=rows,
        codes=codes,
        grid=Grid(
            scales=_values_of(regions[-2], torch.float16),
            zero_points=unpack_codes(regions[-1], format.widest, format.groups(columns)),
        ),
        ratios=_values_of(ratios[None], torch.float16)[0],
        shifts=unpack_codes(shifts, SHIFT_BITS, len(rows)),
    )


def _grid(scales: Tensor, zero_points: Tensor, format: AffineFormat, columns: int) -> Grid:
    values = _values_of(scales, torch.float16)
    if format.symmetric:
        middle = 2 ** (format.bits - 1)
        return Grid(scales=values, zero_points=torch.full_like(values, middle, dtype=torch.uint8))
    return Grid(scales=values, zero_points=unpack_codes(zero_points, format.bits, format.groups(columns)))


def _tensor_of(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _bytes_of(values: Tensor) -> Tensor:
    return values.contiguous().reshape(-1).view(torch.uint8)  # one column may have any stride and be contiguous


def _values_of(region: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers in `[n, bytes]`; cloned, because a view of wider numbers must begin at a multiple of their size."""
    return region.flatten().clone().view(dtype).reshape(len(region), region.shape[1] // dtype.itemsize)
