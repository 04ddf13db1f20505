"""What may be stored for a row of a weight: kind, bits and granularity.

A format is a value: it has a text which round-trips (`affine{bits=3 group-size=64}`) and counts its own bytes in
integers; an entropy format can only estimate them. How the bytes are laid out is the business of `packing.py` (and of
each backend).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, final

from guidedq.errors import FormatError
from guidedq.quant.nested import NestedFormat, parse_nested

MINIMUM_BITS = 1
MAXIMUM_BITS = 8
SCALE_BITS = 16
"""Scales are fp16: the codes are chosen after the scale is rounded, so more than its 11 bits would buy nothing."""
HUFFMAN_CODE_BITS, RICE_CODE_BITS = 0.1, 0.2
"""What the codes of Gaussian weights take above their entropy, tables included,"""
CODE_BITS_AT_ONE = 0.75
"""and how much more where the entropy is near the bit that each code takes at least."""
OUTLIER_BITS = 32
"""One outlier: a 16-bit value and the 16-bit index of its column."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AffineFormat:
    """Integer codes on a uniform grid, `value = scale * (code - zero_point)`, one grid per group along `in`.

    Attributes:
        bits: Width of a code, 1 to 8.
        group_size: Columns that share a scale, 0 for one scale per row (per channel). The last group may be short.
        symmetric: No zero point is stored; it is fixed at `2 ** (bits - 1)`.
        outliers: Weights of each row that stay at 16 bits, stored beside the codes with their column.
    """

    bits: int
    group_size: int = 64
    symmetric: bool = False
    outliers: int = 0

    def __post_init__(self) -> None:
        if not MINIMUM_BITS <= self.bits <= MAXIMUM_BITS:
            raise FormatError(f"an affine format has {MINIMUM_BITS} to {MAXIMUM_BITS} bits, found {self.bits}.")
        if self.group_size < 0 or self.group_size > 65535:
            raise FormatError(f"group size is 0 (per channel) to 65535 columns, found {self.group_size}.")
        if not 0 <= self.outliers <= 65535:
            raise FormatError(f"outliers per row are 0 to 65535, found {self.outliers}.")

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` weights, the short last one counted."""
        return 1 if self.group_size == 0 else -(-columns // self.group_size)

    def columns_per_group(self, columns: int) -> int:
        """Columns of a full group in a row of `columns` weights."""
        return columns if self.group_size == 0 else min(self.group_size, columns)

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of `columns` weights: codes, scales, zero points, outliers, each padded to a byte."""
        groups = self.groups(columns)
        zero_points = 0 if self.symmetric else _bytes_of(groups * self.bits)
        return (
            _bytes_of(columns * self.bits)
            + _bytes_of(groups * SCALE_BITS)
            + zero_points
            + self.outliers * OUTLIER_BITS // 8
        )

    def __str__(self) -> str:
        symmetric = " symmetric" if self.symmetric else ""
        outliers = f" outliers={self.outliers}" if self.outliers else ""
        return f"affine{{bits={self.bits} group-size={self.group_size}{symmetric}{outliers}}}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FloatFormat:
    """Values kept in floating point: the site, or the row, is left alone.

    Attributes:
        dtype: `fp16`, `bf16` or `fp32`.
    """

    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"

    @property
    def bits(self) -> int:
        """Bits of one value."""
        return 32 if self.dtype == "fp32" else 16

    def row_bytes(self, columns: int) -> int:
        """Bytes that one row of `columns` weights takes."""
        return columns * self.bits // 8

    def __str__(self) -> str:
        return self.dtype


ENTROPY_ZERO = 128
"""The code of zero in entropy formats; codes have a byte."""
ENTROPY_STEPS_PER_BIT = 4
"""Entropy formats differ by quarters of a bit at least."""
EntropyCode = Literal["huffman", "rice"]
LEAST_ENTROPY_BITS, MOST_ENTROPY_BITS = 0.5, 6.0
"""Beyond 6 bits the codes of a heavy-tailed row would leave a byte."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyFormat:
    """Integer codes on a uniform grid through zero, stored by their entropy: frequent codes take fewer bits.

    `value = code * column scale * row scale`, codes -128 to 127. With no limit on the codes' number the grid need not
    follow the range of small groups, and what a weight costs follows from its step alone: at equal distortion this
    saves more than half a bit against fixed widths (Gish and Pierce 1968: a quarter of a bit from the limit).

    Attributes:
        bits: Nominal: the step of a row is that at which Gaussian codes have so many bits of entropy. In quarters.
        code: `huffman` streams are the shorter ones; `rice` streams can be unpacked by array operations. Under `rice`
            all rows of a site are in one stream, and `bits` is their mean: steps are finer in rows that matter more.
    """

    bits: float
    code: EntropyCode = "huffman"

    def __post_init__(self) -> None:
        within = LEAST_ENTROPY_BITS <= self.bits <= MOST_ENTROPY_BITS
        if not within or self.bits * ENTROPY_STEPS_PER_BIT % 1:
            raise FormatError(
                f"an entropy format has {LEAST_ENTROPY_BITS} to {MOST_ENTROPY_BITS} bits in quarters, not {self.bits}."
            )

    @property
    def step(self) -> float:
        """The step of a row whose scaled weights have a root mean square of 1."""
        return math.sqrt(2 * math.pi * math.e) * 2.0**-self.bits

    def code_bytes(self, columns: int) -> int:
        """An estimate of what the codes of a row take: those of Gaussian weights, with some room."""
        entropy = 0.5 * math.log2(1.0 + 4.0**self.bits)
        above = RICE_CODE_BITS if self.code == "rice" else HUFFMAN_CODE_BITS
        return math.ceil(columns * (entropy + above + CODE_BITS_AT_ONE * 2.0**-self.bits) / 8)

    def row_bytes(self, columns: int) -> int:
        """An estimate of what a row takes, its scale included."""
        return self.code_bytes(columns) + 1

    def __str__(self) -> str:
        return f"entropy{{bits={self.bits:g}{' rice' if self.code == 'rice' else ''}}}"


Format = AffineFormat | EntropyFormat | FloatFormat | NestedFormat
RoundedFormat = AffineFormat | EntropyFormat
"""The formats that take a rounder."""


def parse_format(text: str) -> Format:
    """Read a format from its text, the inverse of `str`.

    Raises:
        FormatError: `text` is not the text of a format.
    """
    if text in ("fp16", "bf16", "fp32"):
        return FloatFormat(dtype=text)  # pyright: ignore[reportArgumentType]
    if match := re.fullmatch(r"entropy\{bits=([0-9]+(?:\.[0-9]+)?)( rice)?\}", text):
        return EntropyFormat(bits=float(match[1]), code="rice" if match[2] else "huffman")
    if nested := parse_nested(text):
        return nested
    if not (text.startswith("affine{") and text.endswith("}")):
        raise FormatError(
            f"{text!r} is no format: expected fp16, affine{{bits=3 group-size=64}} or entropy{{bits=2.5}}."
        )
    options: dict[str, int] = {}
    symmetric = False
    for word in text[len("affine{") : -1].split():
        name, _, value = word.partition("=")
        if word == "symmetric":
            symmetric = True
        elif name in ("bits", "group-size", "outliers") and value.isdecimal():
            options[name.replace("-", "_")] = int(value)
        else:
            raise FormatError(f"{word!r} in {text!r} is no option of a format.")
    if "bits" not in options:
        raise FormatError(f"{text!r} does not say how many bits.")
    return AffineFormat(symmetric=symmetric, **options)


def _bytes_of(bits: int) -> int:
    return -(-bits // 8)
