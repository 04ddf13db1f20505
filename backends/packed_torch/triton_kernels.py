"""Kernels in Triton, for packed weights on a GPU: the same blobs, the same numbers as those in `native/`.

A program takes some rows of one segment, and goes through their columns tile by tile: it dequantizes a tile as the
reference does, then multiplies it by all inputs, or writes it. Bytes are loaded one by one, since nothing in a blob is
aligned (`guidedq/quant/packing.py`), but few of them for each weight: a thread takes eight columns, whose codes fill
`bits` bytes, and as a rule lie in one group. Triton compiles a kernel anew for each kind of segment, width, group size
and number of inputs, at its first call.
"""

# Triton is not installed everywhere, and its functions have types of its own.
# ruff: noqa: ANN001, ANN202
# pyright: reportMissingImports=false, reportUntypedFunctionDecorator=false, reportMissingParameterType=false
# pyright: reportIndexIssue=false

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float32, Int32, UInt8
from torch import Tensor

from guidedq.quant.exponents import ONE
from guidedq.quant.formats import FloatFormat
from guidedq.quant.packing import COLUMN_STEP, COLUMN_ZERO, BlobLayout, read_layout, write_header

from .native.calls import KINDS, SCALES, segment_numbers

ROWS_AT_ONCE, WORDS_AT_ONCE = 4, 32
"""Of a program's tile: a word of eight columns for each of its 128 threads, and programs enough for a whole GPU."""
COLUMNS_AT_ONCE = 8 * WORDS_AT_ONCE
OPTIONS = {"height": ROWS_AT_ONCE, "words": WORDS_AT_ONCE, "enable_fp_fusion": True}
"""Of every start of a kernel. Products may be added unrounded; dequantizing adds nothing."""
OLDEST_CAPABILITY = (8, 0)
"""Of the GPUs that Triton compiles for."""

_AFFINE, _PATCHED, _HALF, _BFLOAT = (tl.constexpr(KINDS[kind]) for kind in ("affine", "patched", "fp16", "bf16"))
_COLUMN_STEP, _FIRST_COLUMN_EXPONENT = tl.constexpr(COLUMN_STEP), tl.constexpr(ONE - COLUMN_STEP * COLUMN_ZERO)


def multiply_rows(
    layout: BlobLayout, blob: UInt8[Tensor, "bytes"], listed: Int32[Tensor, "out"], inputs: Float32[Tensor, "count in"]
) -> Float32[Tensor, "count out"]:
    """Multiply some rows of finite inputs by a weight. Sums are in float32.

    Args:
        layout: Of the blob, which must be without streams.
        blob: The weight; contiguous and on the same GPU, as all tensors here.
        listed: Its rows, segment after segment.
        inputs: What to multiply: few, for a program holds all of them at once.
    """
    count, (rows, columns) = len(inputs), layout.shape
    outputs = inputs.new_empty(count, rows)
    held = triton.next_power_of_2(max(count, 1))
    for start, own, numbers in _segments(layout) if count else ():
        with torch.cuda.device_of(blob):
            _multiply[(triton.cdiv(own, ROWS_AT_ONCE),)](
                outputs, inputs, listed, blob, _scales(blob.device), count, start, rows, columns, *numbers,
                held=held, **OPTIONS,
            )  # fmt: skip
    return outputs


def dequantize_rows(
    layout: BlobLayout, blob: UInt8[Tensor, "bytes"], places: Int32[Tensor, "n"]
) -> Float32[Tensor, "n in"]:
    """Some rows of a weight, bit for bit as the reference dequantizes them.

    Args:
        layout: Of the blob, which must be without streams.
        blob: The weight.
        places: Where the rows that are wanted are listed, in any order.
    """
    count, columns = len(places), layout.shape[1]
    outputs = torch.empty(count, columns, device=blob.device)
    grid = (triton.cdiv(count, ROWS_AT_ONCE), triton.cdiv(columns, COLUMNS_AT_ONCE))
    for start, _, numbers in _segments(layout) if count else ():
        with torch.cuda.device_of(blob):
            _dequantize[grid](
                outputs, places, blob, _scales(blob.device), count, start, columns, *numbers,
                **OPTIONS,
            )  # fmt: skip
    return outputs


def try_on(device: torch.device) -> None:
    """Read the weight 1 on a GPU, to see whether Triton can compile and start a kernel there.

    Raises:
        Exception: it cannot, of the many kinds that Triton, compilers and drivers raise.
    """
    format = FloatFormat(dtype="fp32")
    header = write_header([(format, 1)], 1, scaled=False)
    blob = torch.tensor([*header, *struct.pack("<f", 1.0)], dtype=torch.uint8)
    layout = read_layout(blob, "a trial", (1, 1))
    found = float(dequantize_rows(layout, blob.to(device), torch.zeros(1, dtype=torch.int32, device=device)))
    if found != 1.0:
        raise RuntimeError(f"a kernel read the weight 1 as {found}.")


def _segments(layout: BlobLayout) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Of each segment: where it is listed first, its rows, and the numbers that all kernels take."""
    start = 0
    column_scales = -1 if layout.columns_offset is None else layout.columns_offset
    for part in layout.segments:
        yield start, part.rows, (int(column_scales >= 0), column_scales, *segment_numbers(part, layout.shape[1]))
        start += part.rows


@cache
def _scales(device: torch.device) -> Tensor:
    """What the bytes of scales stand for."""
    return SCALES.to(device)


# Triton reads the source of what follows, so nothing may wrap it: neither do the checks of types in the tests.

_SEGMENT = ("column_scales", "groups", "outliers", "rows", "codes", "scales", "zero_points")
_UNSPECIALIZED = ("count", "start", *_SEGMENT, "outlier_columns", "outlier_values")
"""Numbers for whose values no kernel need be compiled anew."""


@triton.jit(do_not_specialize=_UNSPECIALIZED)
@no_type_check
def _multiply(
    outputs, inputs, listed, blob, powers, count, start, all_rows, columns,
    scaled: tl.constexpr, column_scales, kind: tl.constexpr, bits: tl.constexpr, group: tl.constexpr, groups,
    symmetric: tl.constexpr, outliers, rows, codes, scales, zero_points, outlier_columns, outlier_values,
    held: tl.constexpr, height: tl.constexpr, words: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * height + tl.arange(0, height)
    mine = place < rows
    number = tl.arange(0, held)[:, None, None]
    lane = tl.arange(0, 8)[None, None, :]
    products = tl.zeros((held, height, words, 8), tl.float32)
    for first in range(0, tl.cdiv(columns, 8), words):
        word = (first + tl.arange(0, words))[None, :, None]
        values = _values(
            blob, powers, place.to(tl.int64)[:, None, None], mine[:, None, None], word, lane, columns,
            scaled, column_scales, kind, bits, group, groups,
            symmetric, outliers, codes, scales, zero_points, outlier_columns, outlier_values,
        )  # fmt: skip
        column = word * 8 + lane
        given = tl.load(inputs + number * columns + column, mask=(number < count) & (column < columns), other=0.0)
        products += given[:, None, :, :] * values[None, :, :, :]
    sums = tl.sum(tl.sum(products, axis=3), axis=2)
    row = tl.load(listed + start + place, mask=mine, other=0)
    number = tl.arange(0, held)[:, None]
    tl.store(outputs + number * all_rows + row, sums, mask=(number < count) & (mine & (row < all_rows)))


@triton.jit(do_not_specialize=_UNSPECIALIZED)
@no_type_check
def _dequantize(
    outputs, places, blob, powers, count, start, columns,
    scaled: tl.constexpr, column_scales, kind: tl.constexpr, bits: tl.constexpr, group: tl.constexpr, groups,
    symmetric: tl.constexpr, outliers, rows, codes, scales, zero_points, outlier_columns, outlier_values,
    height: tl.constexpr, words: tl.constexpr,
):  # fmt: skip
    number = (tl.program_id(0) * height + tl.arange(0, height))[:, None, None]
    place = tl.load(places + number, mask=number < count, other=-1) - start
    mine = (place >= 0) & (place < rows)
    word = (tl.program_id(1) * words + tl.arange(0, words))[None, :, None]
    lane = tl.arange(0, 8)[None, None, :]
    values = _values(
        blob, powers, place.to(tl.int64), mine, word, lane, columns,
        scaled, column_scales, kind, bits, group, groups,
        symmetric, outliers, codes, scales, zero_points, outlier_columns, outlier_values,
    )  # fmt: skip
    column = word * 8 + lane
    tl.store(outputs + number.to(tl.int64) * columns + column, values, mask=mine & (column < columns))


@triton.jit
@no_type_check
def _values(
    blob, powers, place, mine, word, lane, columns,
    scaled: tl.constexpr, column_scales, kind: tl.constexpr, bits: tl.constexpr, group: tl.constexpr, groups,
    symmetric: tl.constexpr, outliers, codes, scales, zero_points, outlier_columns, outlier_values,
):  # fmt: skip
    """The weights `[place, word, lane]` of a segment, where the place is `mine`; each of these has one axis only."""
    column = word * 8 + lane
    mask = mine & (column < columns)
    if kind == _AFFINE:
        code = _codes(blob, codes, place, mine, word, lane, columns, bits)
        if group % 8 == 0:
            own = word // (group // 8)
        else:
            own = column // group
        known = mine & (own < groups)
        if symmetric:
            zero = 1 << (bits - 1)
        else:
            zero = _code(blob, zero_points + place * ((groups * bits + 7) // 8), own, known, bits)
        values = (code - zero).to(tl.float32) * _half(blob, scales + 2 * (place * groups + own), known)
        for which in range(outliers):
            outlier = 2 * (place * outliers + which)
            at = _word(blob, outlier_columns + outlier, mine, 2).to(tl.int32)
            values = tl.where(column == at, _half(blob, outlier_values + outlier, mine), values)
    elif kind == _PATCHED:
        code = _codes(blob, codes, place, mine, word, lane, columns, bits) - (1 << (bits - 1))
        for which in range(outliers):
            patch = place * outliers + which
            at = _word(blob, outlier_columns + 2 * patch, mine, 2).to(tl.int32)
            more = tl.load(blob + outlier_values + patch, mask=mine, other=0).to(tl.int8, bitcast=True).to(tl.int32)
            code += tl.where(column == at, more, 0)
        values = code.to(tl.float32)
        if scaled:
            step = _code(blob, column_scales, column, column < columns, 4)  # COLUMN_BITS
            values *= tl.load(powers + _FIRST_COLUMN_EXPONENT + _COLUMN_STEP * step)
        values *= tl.load(powers + tl.load(blob + scales + place, mask=mine, other=0).to(tl.int32))
    elif kind == _HALF:
        values = _half(blob, codes + 2 * (place * columns + column), mask)
    elif kind == _BFLOAT:
        values = (_word(blob, codes + 2 * (place * columns + column), mask, 2) << 16).to(tl.float32, bitcast=True)
    else:
        values = _word(blob, codes + 4 * (place * columns + column), mask, 4).to(tl.float32, bitcast=True)
    return values


@triton.jit
@no_type_check
def _codes(blob, first, place, mine, word, lane, columns, bits: tl.constexpr):
    """Codes by word, eight of which fill `bits` bytes; `first` is the first byte of the first row's."""
    width = (columns * bits + 7) // 8
    start = first + place * width
    packed = tl.load(blob + start + word * bits, mask=mine & (word * bits < width), other=0).to(tl.uint64)
    for part in tl.static_range(1, bits):
        byte = word * bits + part
        packed |= tl.load(blob + start + byte, mask=mine & (byte < width), other=0).to(tl.uint64) << (8 * part)
    return (packed >> (lane * bits).to(tl.uint64)).to(tl.int32) & ((1 << bits) - 1)


@triton.jit
@no_type_check
def _code(blob, first, number, mask, bits: tl.constexpr):
    """Codes one by one, by their number in the stream whose first byte is `first`: each lies in two bytes at most."""
    bit = number * bits
    byte, shift = first + bit // 8, bit % 8
    word = tl.load(blob + byte, mask=mask, other=0).to(tl.int32)
    if 8 % bits != 0:
        word |= tl.load(blob + byte + 1, mask=mask & (shift + bits > 8), other=0).to(tl.int32) << 8
    return (word >> shift) & ((1 << bits) - 1)


@triton.jit
@no_type_check
def _half(blob, byte, mask):
    """Float32 numbers from fp16 ones at any address."""
    return _word(blob, byte, mask, 2).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
@no_type_check
def _word(blob, byte, mask, length: tl.constexpr):
    """Little-endian words of so many bytes at any address."""
    word = tl.load(blob + byte, mask=mask, other=0).to(tl.uint32)
    for place in tl.static_range(1, length):
        word |= tl.load(blob + byte + place, mask=mask, other=0).to(tl.uint32) << (8 * place)
    return word
