"""Streams of codes: round trips, hostile streams, and what they take."""

from __future__ import annotations

import math
import tracemalloc
import zlib

import pytest
import torch
from hypothesis import given, strategies

from guidedq.errors import FormatError
from guidedq.quant.entropy import RAW, column_order, decode_codes, encode_codes
from guidedq.quant.formats import EntropyFormat

SHAPES = [(1, 1), (1, 300), (300, 1), (7, 13), (64, 129), (257, 33)]


def coded(rows: int, columns: int, kind: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "equal":
        return torch.full((rows, columns), 128, dtype=torch.uint8)
    if kind == "uniform":
        return torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    values = torch.randn(rows, columns, generator=generator) / EntropyFormat(bits=3.0).step
    return (values.round() + 128).clamp(0, 255).to(torch.uint8)


def ordered(columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randperm(columns, generator=torch.Generator().manual_seed(seed))


def entropy_bits(codes: torch.Tensor) -> float:
    shares = codes.flatten().bincount().double() / codes.numel()
    return float(-(shares * shares.clamp(min=1e-300).log2()).sum())


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("kind", ["equal", "uniform", "gaussian"])
@pytest.mark.parametrize(("rows", "columns"), SHAPES, ids=str)
def test_decoding_undoes_encoding(rows: int, columns: int, kind: str, thorough: bool) -> None:
    codes, order = coded(rows, columns, kind), ordered(columns)
    stream = encode_codes(codes, order, thorough=thorough)
    assert torch.equal(decode_codes(stream, rows, order), codes)


@given(strategies.integers(1, 9), strategies.integers(1, 40), strategies.data())
def test_any_codes_in_any_order_come_back(rows: int, columns: int, data) -> None:
    symbols = data.draw(strategies.binary(min_size=rows * columns, max_size=rows * columns))
    codes = torch.tensor(list(symbols), dtype=torch.uint8).view(rows, columns)
    order = torch.tensor(data.draw(strategies.permutations(range(columns))))
    assert torch.equal(decode_codes(encode_codes(codes, order), rows, order), codes)


def test_the_thorough_stream_is_never_longer() -> None:
    for kind in ("equal", "uniform", "gaussian"):
        codes, order = coded(200, 90, kind), ordered(90)
        assert len(encode_codes(codes, order)) <= len(encode_codes(codes, order, thorough=False))


def test_gaussian_codes_take_about_their_entropy() -> None:
    codes = coded(1000, 128, "gaussian")
    bits = 8 * len(encode_codes(codes, torch.arange(128))) / codes.numel()
    assert entropy_bits(codes) <= bits <= entropy_bits(codes) + 0.1


def test_codes_without_statistics_take_hardly_more_than_bytes() -> None:
    codes = coded(300, 300, "uniform")
    assert len(encode_codes(codes, ordered(300))) <= 1.01 * codes.numel()


def test_columns_of_like_statistics_side_by_side_take_fewer_bytes() -> None:
    sizes = torch.tensor([0.3, 12.0]).repeat(64)
    values = torch.randn(2000, 128, generator=torch.Generator().manual_seed(3)) * sizes
    codes = (values.round() + 128).clamp(0, 255).to(torch.uint8)
    sorted_ = column_order((100 * sizes / 12).to(torch.uint8))
    assert len(encode_codes(codes, sorted_)) < 0.9 * len(encode_codes(codes, torch.arange(128)))


def test_columns_are_ordered_by_scale_and_equal_ones_stay_in_their_order() -> None:
    exponents = torch.tensor([9, 3, 9, 0, 3, 255, 0], dtype=torch.uint8)
    assert column_order(exponents).tolist() == [3, 6, 1, 4, 0, 2, 5]


def test_a_truncated_or_extended_stream_is_refused() -> None:
    codes, order = coded(9, 31, "gaussian"), ordered(31)
    stream = encode_codes(codes, order)
    cuts = [stream[:length] for length in range(len(stream))]
    for wrong in (*cuts, stream + b"\0", stream + stream, b"\0" + stream):
        with pytest.raises(FormatError, match="stream of"):
            decode_codes(wrong, 9, order)


def test_a_stream_of_another_number_of_codes_is_refused() -> None:
    order = torch.arange(10)
    for rows in (1, 4, 6, 500):
        with pytest.raises(FormatError, match=r"holds (more|fewer)"):
            decode_codes(encode_codes(coded(rows, 10, "gaussian"), order), 5, order)


@given(strategies.binary(max_size=80))
def test_noise_is_refused_or_is_a_stream_of_so_many_codes(data: bytes) -> None:
    order = torch.arange(7)
    try:
        codes = decode_codes(data, 3, order)
    except FormatError:
        return
    assert zlib.decompress(data, RAW) == bytes(codes.t().flatten().tolist())


@given(strategies.integers(0, 10**6), strategies.integers(1, 255))
def test_a_changed_byte_is_refused_or_gives_as_many_codes(place: int, change: int) -> None:
    order = ordered(31)
    stream = bytearray(encode_codes(coded(9, 31, "gaussian"), order))
    stream[place % len(stream)] ^= change
    try:
        codes = decode_codes(bytes(stream), 9, order)
    except FormatError:
        return
    assert codes.shape == (9, 31)


def test_a_stream_that_unpacks_to_far_more_is_refused_without_unpacking_it() -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, RAW)
    stream = bomb.compress(bytes(64_000_000)) + bomb.flush()
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"holds (more|fewer)"):
        decode_codes(stream, 10, torch.arange(10))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("bits", [2.0, 2.5, 4.0, 6.0])
def test_the_estimated_bytes_of_a_row_are_those_of_gaussian_codes(bits: float) -> None:
    format = EntropyFormat(bits=bits)
    values = torch.randn(2000, 256, generator=torch.Generator().manual_seed(1)) / format.step
    codes = (values.round() + 128).clamp(0, 255).to(torch.uint8)
    measured = len(encode_codes(codes, torch.arange(256))) / 2000 + 1
    assert math.isclose(measured, format.row_bytes(256), rel_tol=0.1)
