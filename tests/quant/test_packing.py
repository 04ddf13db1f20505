"""Packed weights: identity, exact sizes, the layout's lines, and hostile bytes."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies
from random_weights import affine_formats, entropy_formats, fixed_formats, formats, random_weight, same_weight

from guidedq.artifacts import packed_weight
from guidedq.artifacts.packed_weight import pack_weight, read_segment, segment_rows, unpack_weight
from guidedq.artifacts.quantized_weight import EntropySegment, FloatSegment, QuantizedWeight, float_weight
from guidedq.errors import ArtifactError, FormatError
from guidedq.quant import patched
from guidedq.quant.bit_stream import pack_codes
from guidedq.quant.entropy import column_order, encode_codes
from guidedq.quant.exponents import ONE
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat
from guidedq.quant.packing import (
    COLUMN_BITS,
    INDEX_BITS,
    MAXIMUM_SEGMENTS,
    STREAM_HEADER,
    blob_bytes,
    columns_bytes,
    read_layout,
    region_widths,
)

format_mixes = strategies.lists(formats, min_size=1, max_size=MAXIMUM_SEGMENTS, unique=True)
rows_and_columns = strategies.tuples(strategies.integers(4, 12), strategies.integers(3, 70))
seeds = strategies.integers(0, 2**31)


def tensor_of(data: bytes) -> torch.Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


def columns_are_scaled(weight: QuantizedWeight) -> bool:
    scales = [part.column_exponents for part in weight.segments if isinstance(part, EntropySegment)]
    return any(bool((exponents != ONE).any()) for exponents in scales)


@given(rows_and_columns, format_mixes, seeds)
def test_unpacking_undoes_packing_and_without_streams_the_size_is_the_counted_one(shape, mix, seed):
    weight = random_weight("w", shape, mix, seed)
    stored, plain = pack_weight(weight), pack_weight(weight, streams=False)
    for blob in (stored, plain):
        assert same_weight(unpack_weight(blob, "w", shape), weight)
    for blob, streams in ((stored, weight.has_entropy), (plain, False)):
        layout = read_layout(blob, "w", shape)
        counted = [(part.format, part.rows) for part in layout.segments]
        added = [STREAM_HEADER.size + part.stream_bytes for part in layout.segments if part.stream_bytes]
        assert len(blob) == blob_bytes(shape[1], counted, scaled=columns_are_scaled(weight)) + sum(added)
        assert layout.has_streams == bool(added) == streams
    assert weight.has_entropy or torch.equal(stored, plain)


@given(fixed_formats, strategies.integers(3, 300))
def test_the_regions_of_a_row_are_the_formats_row_bytes(format, columns):
    assert sum(region_widths(format, columns)) == format.row_bytes(columns)


@given(rows_and_columns, format_mixes, seeds, strategies.booleans())
def test_rows_read_one_by_one_are_those_of_the_whole(shape, mix, seed, streams):
    weight = random_weight("w", shape, mix, seed)
    blob = pack_weight(weight, streams=streams)
    layout = read_layout(blob, "w", shape)
    for part, rows in zip(layout.segments, segment_rows(blob, "w", layout), strict=True):
        places = torch.tensor([part.rows - 1, 0, part.rows - 1])
        values = read_segment(blob, layout, part, rows[places], places).dequantize()
        assert torch.equal(values, weight.dequantize()[rows[places]])


def test_the_bytes_of_fixed_widths_are_those_of_the_lines():
    first = AffineFormat(bits=3, group_size=2, outliers=1)
    weight = random_weight("w", (3, 5), [first, FloatFormat(dtype="bf16")], 7)
    affine, whole = weight.segments
    numbers = torch.zeros(1, 3, dtype=torch.uint8)
    numbers[0, whole.rows] = 1
    expected = struct.pack("<BB", 0x72, 2)
    expected += struct.pack("<BHHI", 3, 2, 1, len(affine.rows)) + struct.pack("<BHHI", 0x21, 0, 0, len(whole.rows))
    expected += bytes(pack_codes(numbers, INDEX_BITS).flatten().tolist())
    expected += bytes(pack_codes(affine.codes, 3).flatten().tolist())
    expected += affine.grid.scales.numpy().astype("<f2").tobytes()
    expected += bytes(pack_codes(affine.grid.zero_points, 3).flatten().tolist())
    expected += affine.outlier_columns.numpy().astype("<u2").tobytes()
    expected += affine.outlier_values.numpy().astype("<f2").tobytes()
    expected += whole.values.view(torch.int16).numpy().astype("<i2").tobytes()
    assert bytes(pack_weight(weight).tolist()) == expected


@pytest.mark.parametrize("scaled", [True, False])
def test_the_bytes_of_entropy_segments_are_those_of_the_lines(scaled):
    steps = torch.tensor([[0, 8, 15, 7, 9, 8] if scaled else [8] * 6], dtype=torch.uint8)
    exponents = (192 + 4 * (steps[0].int() - 8)).to(torch.uint8)
    weight = random_weight("w", (5, 6), [EntropyFormat(bits=2.25), EntropyFormat(bits=6.0)], 7)
    first, second = [replace(part, column_exponents=exponents) for part in weight.segments]
    weight = QuantizedWeight(name="w", shape=(5, 6), segments=(first, second))
    numbers = torch.zeros(1, 5, dtype=torch.uint8)
    numbers[0, second.rows] = 1
    expected = struct.pack("<BB", 0x72, 2)
    for part, quarters in ((first, 9), (second, 24)):
        expected += struct.pack("<BHHI", 0x30, quarters, int(scaled), len(part.rows))
    expected += bytes(pack_codes(numbers, INDEX_BITS).flatten().tolist())
    expected += bytes(pack_codes(steps, COLUMN_BITS).flatten().tolist()) if scaled else b""
    for part in (first, second):
        stream = encode_codes(part.codes, column_order(part.column_exponents))
        expected += struct.pack("<I", len(stream)) + stream + bytes(part.row_exponents.tolist())
    assert bytes(pack_weight(weight).tolist()) == expected


@pytest.mark.parametrize("scaled", [True, False])
def test_the_bytes_of_patched_segments_are_those_of_the_lines(scaled):
    exponents = torch.full((48,), ONE, dtype=torch.uint8)
    exponents[5] += 4 * scaled
    codes = torch.full((3, 48), 127, dtype=torch.uint8)
    codes[0, 3], codes[2, 20] = 138, 100
    row_exponents = torch.tensor([190, 191, 192], dtype=torch.uint8)
    segment = EntropySegment(
        format=EntropyFormat(bits=0.75),
        rows=torch.arange(3),
        codes=codes,
        row_exponents=row_exponents,
        column_exponents=exponents,
    )
    expected = struct.pack("<BB", 0x72, 1) + struct.pack("<BHHI", 0x31, int(scaled), 1, 3)
    expected += bytes([0x88, 0x88, 0x98, *[0x88] * 21]) if scaled else b""
    expected += bytes([0b1000, *[0] * 17]) + bytes(row_exponents.tolist()) + bytes([3, 3, 3])
    expected += struct.pack("<HHH", 3, 0, 20) + struct.pack("<bbb", 138 - 128, 0, 100 - 127)
    weight = QuantizedWeight(name="w", shape=(3, 48), segments=(segment,))
    assert bytes(pack_weight(weight, streams=False).tolist()) == expected


def test_large_segments_are_patched_part_by_part_to_the_same_bytes(monkeypatch):
    weight = random_weight("w", (40, 90), [EntropyFormat(bits=2.0), EntropyFormat(bits=4.0)], 7)
    whole = pack_weight(weight, streams=False)
    for module in (packed_weight, patched):
        monkeypatch.setattr(module, "CODES_AT_ONCE", 7 * 90)
    assert torch.equal(pack_weight(weight, streams=False), whole)


def test_one_segment_has_no_index_and_symmetric_rows_no_zero_points():
    weight = random_weight("w", (5, 8), [AffineFormat(bits=4, group_size=0, symmetric=True)], 1)
    assert len(pack_weight(weight)) == 2 + 9 + 5 * (4 + 2)


@given(rows_and_columns, format_mixes, seeds, strategies.data())
def test_any_changed_truncated_or_longer_blob_is_refused_or_is_a_weight(shape, mix, seed, data):
    blob = bytes(pack_weight(random_weight("w", shape, mix, seed)).tolist())
    header = 2 + 9 * len(mix)
    for _ in range(5):
        place = data.draw(strategies.integers(0, min(len(blob), 2 * header) - 1))
        changed = bytearray(blob)
        changed[place] = data.draw(strategies.integers(0, 255))
        try:
            weight = unpack_weight(tensor_of(bytes(changed)), "w", shape)
        except ArtifactError as error:
            assert "w: the packed weight is damaged" in str(error)
        else:
            assert bool(torch.isfinite(weight.dequantize()).all())
    cut = data.draw(strategies.integers(0, len(blob) - 1))
    for wrong in (blob[:cut], blob + b"\0", blob + blob):
        with pytest.raises(ArtifactError):
            unpack_weight(tensor_of(wrong), "w", shape)


@given(
    rows_and_columns, strategies.lists(entropy_formats, min_size=1, max_size=3, unique=True), seeds, strategies.data()
)
def test_a_changed_byte_in_any_region_of_entropy_segments_is_refused_or_is_a_weight(shape, mix, seed, data):
    weight = random_weight("w", shape, mix, seed)
    blob = bytes(pack_weight(weight, streams=data.draw(strategies.booleans())).tolist())
    for _ in range(5):
        place, change = data.draw(strategies.integers(0, len(blob) - 1)), data.draw(strategies.integers(1, 255))
        changed = bytearray(blob)
        changed[place] ^= change
        try:
            found = unpack_weight(tensor_of(bytes(changed)), "w", shape)
        except ArtifactError as error:
            assert "w: the packed weight is damaged" in str(error)
        else:
            assert bool(torch.isfinite(found.dequantize()).all())


def entropy_regions() -> tuple[bytes, dict[str, int]]:
    """A blob of two entropy segments, and the first byte of each of its regions."""
    exponents = torch.full((6,), ONE, dtype=torch.uint8)
    exponents[2] += 4
    weight = random_weight("layer.weight", (5, 6), [EntropyFormat(bits=2.0), EntropyFormat(bits=6.0)], 7)
    parts = tuple(replace(part, column_exponents=exponents) for part in weight.segments)
    blob = pack_weight(replace(weight, segments=parts))
    layout = read_layout(blob, "layer.weight", (5, 6))
    first, second = layout.segments
    assert layout.columns_offset is not None
    places = {"header": 2, "index": layout.index_offset, "columns": layout.columns_offset, "length": first.offset}
    places |= {"stream": first.offset + STREAM_HEADER.size, "second length": second.offset}
    places |= {"rows": first.offset + STREAM_HEADER.size + first.stream_bytes, "end": len(blob)}
    assert places["columns"] + columns_bytes(6) == places["length"]
    return bytes(blob.tolist()), places


HOSTILE_ENTROPY = {
    "no bits": ("header", 1, b"\0\0", "known format"),
    "too many bits": ("header", 1, b"\x19\0", "known format"),
    "outliers": ("header", 3, b"\2\0", "with scales or without"),
    "columns with scales and without": ("header", 3, b"\0\0", "with scales or without"),
    "another kind of codes": ("header", 0, b"\x31", "damaged"),
    "one format twice": ("header", 10, b"\x08", "distinct formats"),
    "a row of no segment": ("index", 0, b"\x07", "rows by segment"),
    "no stream": ("length", 0, b"\0\0\0\0", "a stream"),
    "a short stream": ("length", 0, b"\1\0\0\0", "damaged"),
    "an immense stream": ("length", 0, b"\xff\xff\xff\xff", "the length of a stream"),
    "an immense last stream": ("second length", 0, b"\xff\xff\xff\xff", "bytes"),
    "a stream of a reserved kind": ("stream", 0, b"\x07", "stream of codes"),
    "a stream that ends early": ("stream", 0, b"\x03\0", "stream of codes"),
}


@pytest.mark.parametrize(("region", "place", "bytes_", "message"), HOSTILE_ENTROPY.values(), ids=HOSTILE_ENTROPY.keys())
def test_hostile_entropy_segments_are_refused_by_name(region, place, bytes_, message):
    blob, places = entropy_regions()
    start = places[region] + place
    changed = blob[:start] + bytes_ + blob[start + len(bytes_) :]
    with pytest.raises(ArtifactError, match=f"layer.weight.*{message}"):
        unpack_weight(tensor_of(changed), "layer.weight", (5, 6))


def test_a_byte_lost_or_added_in_any_region_of_an_entropy_segment_is_refused():
    blob, places = entropy_regions()
    for place in places.values():
        for wrong in (blob[: place - 1] + blob[place:], blob[:place] + b"\0" + blob[place:], blob[: place - 1]):
            with pytest.raises(ArtifactError, match=r"layer\.weight"):
                unpack_weight(tensor_of(wrong), "layer.weight", (5, 6))


def test_a_stream_of_far_more_codes_is_refused():
    blob, places = entropy_regions()
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = bomb.compress(bytes(10_000_000)) + bomb.flush()
    wrong = blob[: places["length"]] + STREAM_HEADER.pack(len(stream)) + stream + blob[places["rows"] :]
    with pytest.raises(ArtifactError, match="holds more"):
        unpack_weight(tensor_of(wrong), "layer.weight", (5, 6))


@given(strategies.binary(max_size=60))
def test_noise_is_refused(data):
    with pytest.raises(ArtifactError):
        unpack_weight(tensor_of(data), "w", (1000, 1000))


HOSTILE = {
    "another version": (0, b"\x71", "layout version"),
    "no segments": (1, b"\0", "1 to 8 segments"),
    "too many segments": (1, b"\xff", "1 to 8 segments"),
    "an unknown kind": (2, b"\x40", "known format"),
    "nine bits": (2, b"\x09", "known format"),
    "more outliers than columns": (5, b"\xff\xff", "fit the weight"),
    "billions of rows": (7, b"\xff\xff\xff\xff", "rows in segments"),
    "an empty segment": (7, b"\0\0\0\0", "fit the weight"),
    "one format twice": (11, b"\x03\x02\x00\x01\x00", "distinct formats"),
    "a row of no segment": (20, b"\x07", "rows by segment"),
}


@pytest.mark.parametrize(("place", "bytes_", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_headers_are_refused_by_name(place, bytes_, message):
    mix = [AffineFormat(bits=3, group_size=2, outliers=1), FloatFormat()]
    blob = bytearray(pack_weight(random_weight("layer.weight", (4, 5), mix, 7)).tolist())
    blob[place : place + len(bytes_)] = bytes_
    with pytest.raises(ArtifactError, match=f"layer.weight.*{message}"):
        unpack_weight(tensor_of(bytes(blob)), "layer.weight", (4, 5))


@pytest.mark.parametrize(
    ("tail", "message"),
    [(b"\x05\x00\x00\x3c", "outlier columns"), (b"\x00\x00\x00\x7c", "finite outliers")],
    ids=["a column beyond the row", "an infinite outlier"],
)
def test_hostile_outliers_are_refused(tail, message):
    blob = bytes(pack_weight(random_weight("w", (1, 5), [AffineFormat(bits=4, outliers=1)], 0)).tolist())
    with pytest.raises(ArtifactError, match=message):
        unpack_weight(tensor_of(blob[:-4] + tail), "w", (1, 5))


def test_hostile_scales_and_values_are_refused():
    grouped = bytes(pack_weight(random_weight("w", (1, 8), [AffineFormat(bits=8, symmetric=True)], 0)).tolist())
    for scale in (b"\0\0", b"\x00\x7c", b"\x00\x7e", b"\x00\xbc"):
        with pytest.raises(ArtifactError, match="scales"):
            unpack_weight(tensor_of(grouped[:-2] + scale), "w", (1, 8))
    whole = bytes(pack_weight(random_weight("w", (1, 8), [FloatFormat()], 0)).tolist())
    with pytest.raises(ArtifactError, match="finite values"):
        unpack_weight(tensor_of(whole[:-2] + b"\x00\x7c"), "w", (1, 8))


def test_a_blob_of_another_shape_is_refused():
    blob = pack_weight(random_weight("w", (6, 8), [AffineFormat(bits=4)], 0))
    for shape in ((8, 6), (6, 9), (12, 4), (1, 1), (2**40, 2**40)):
        with pytest.raises(ArtifactError):
            unpack_weight(blob, "w", shape)


@given(entropy_formats, seeds)
def test_entropy_segments_that_break_their_own_rules_are_not_packed(format, seed):
    weight = random_weight("w", (4, 6), [format], seed)
    (segment,) = weight.segments
    assert isinstance(segment, EntropySegment)
    broken = [
        replace(segment, rows=torch.tensor([3, 2, 1, 0])),
        replace(segment, codes=segment.codes[:, :5], column_exponents=segment.column_exponents[:5]),
        replace(segment, column_exponents=segment.column_exponents + 1),
        replace(segment, column_exponents=torch.full((6,), ONE + 32, dtype=torch.uint8)),
    ]
    for wrong in broken:
        with pytest.raises(FormatError):
            pack_weight(QuantizedWeight(name="w", shape=(4, 6), segments=(wrong,)))


def test_entropy_segments_of_different_columns_scales_are_not_packed():
    weight = random_weight("w", (4, 6), [EntropyFormat(bits=2.0), EntropyFormat(bits=3.0)], 0)
    first, second = weight.segments
    assert isinstance(second, EntropySegment)
    other = replace(second, column_exponents=torch.full((6,), ONE + 4, dtype=torch.uint8))
    with pytest.raises(FormatError, match="entropy"):
        pack_weight(replace(weight, segments=(first, other)))


@given(affine_formats, seeds)
def test_weights_that_break_their_own_rules_are_not_packed(format, seed):
    weight = random_weight("w", (4, 6), [format], seed)
    (segment,) = weight.segments
    wrong = [
        replace(segment, rows=torch.tensor([0, 1, 1, 2])),
        replace(segment, rows=torch.tensor([3, 2, 1, 0])),
        replace(segment, codes=segment.codes[:, :5]),
    ]
    if format.bits < 8:
        wrong.append(replace(segment, codes=segment.codes + 2**format.bits))
    if format.outliers:
        wrong.append(replace(segment, outlier_columns=segment.outlier_columns + 6))
    for broken in wrong:
        with pytest.raises(FormatError):
            pack_weight(QuantizedWeight(name="w", shape=(4, 6), segments=(broken,)))


def test_more_segments_than_the_index_can_number_are_refused():
    weight = random_weight("w", (9, 6), [AffineFormat(bits=bits) for bits in range(1, 9)] + [FloatFormat()], 0)
    with pytest.raises(FormatError, match="1 to 8 segments"):
        pack_weight(weight)


def test_a_float_segment_must_have_its_formats_dtype():
    weight = float_weight("w", torch.zeros(2, 3), FloatFormat(dtype="bf16"))
    wrong = FloatSegment(format=FloatFormat(dtype="fp16"), rows=torch.arange(2), values=weight.segments[0].values)
    with pytest.raises(FormatError, match="fp16"):
        pack_weight(QuantizedWeight(name="w", shape=(2, 3), segments=(wrong,)))
