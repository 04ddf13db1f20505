"""Codes of entropy formats as they lie in memory, where rows must be read one by one: narrow ones, and patches.

A row's codes get a width that most of them fit in. The few that do not are clamped to it, and listed beside it with
what is missing: an integer to add to the code of a column. So a row of 3.5 bits of entropy takes some 4.6 bits, where
a byte each would take 8 and a width for all of them 5.4. Known as patched frame of reference (Zukowski, Heman, Nes and
Boncz 2006). Rows of one width and one number of patches lie together, whatever their entropy format was.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import final

import torch
from jaxtyping import Bool, Int8, Int32, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

from guidedq.errors import FormatError
from guidedq.quant.byte_counts import packed_width
from guidedq.quant.formats import ENTROPY_ZERO

WIDEST = 8
COLUMN_BYTES, PATCH_BYTES = 2, 1
PATCH_PRICE = 6
"""Bytes that a patch must save: to add one takes the kernels as long as to read some more of them."""
PATCH_COUNTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""How many patches the rows of a format may have: few numbers, for rows to share them, and finer where it costs."""
LEAST_GAIN, LEAST_BYTES = 0.01, 64
"""What one more format must save, of all bytes and in itself: each takes the kernels some work of its own."""
CODES_AT_ONCE = 1 << 20
"""Few enough to stay in a processor's cache."""
_LOWEST_BITS = 0x0101010101010101
_NEVER = 1 << 24
"""Bytes that no row has."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedFormat:
    """How rows of entropy formats lie in memory.

    Attributes:
        bits: Width of their codes: `b` bits hold -2 ** (b - 1) and more, but less than 2 ** (b - 1).
        patches: Listed for each row, some of them without effect.
    """

    bits: int
    patches: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.bits <= WIDEST and 0 <= self.patches <= PATCH_COUNTS[-1]):
            raise FormatError(f"no patched format has {self.bits} bits and {self.patches} patches.")

    def __str__(self) -> str:
        return f"patched{{bits={self.bits} patches={self.patches}}}"


def choose_formats(
    misfits: Int32[Tensor, "n widths"], columns: int, most: int
) -> tuple[tuple[PatchedFormat, ...], Int64[Tensor, "n"]]:
    """Few formats that hold rows in few bytes, and for each row which of them.

    The best of those that hold all rows comes first, then one by one those that save most.

    Args:
        misfits: Of each row, from `count_misfits`.
        columns: Of the rows.
        most: How many formats there may be.
    """
    formats = _worth_trying(misfits, columns)
    widths = torch.tensor([format.bits - 1 for format in formats])
    fits = misfits[:, widths] <= torch.tensor([format.patches for format in formats])
    prices = [packed_width(columns, format.bits) + PATCH_PRICE * format.patches for format in formats]
    sizes = torch.tensor(prices, dtype=torch.int32)
    costs: Int32[Tensor, "n formats"] = torch.where(fits, sizes, _NEVER)
    chosen = [int(torch.where(fits.all(0), costs.sum(0), torch.iinfo(torch.int64).max).argmin())]
    best = costs[:, chosen[0]]
    while len(chosen) < most:
        gains = (best[:, None] - costs).clamp_(min=0).sum(0)
        if float(gains.max()) < max(LEAST_BYTES, LEAST_GAIN * float(best.sum())):
            break
        chosen.append(int(gains.argmax()))
        best = torch.minimum(best, costs[:, chosen[-1]])
    own = costs[:, chosen].argmin(1)
    used, own = own.unique(return_inverse=True)
    return tuple(formats[chosen[number]] for number in used.tolist()), own


def _worth_trying(misfits: Int32[Tensor, "n widths"], columns: int) -> list[PatchedFormat]:
    """Formats that some row can have, whose patches cost less than a bit more for all codes."""
    least, largest = misfits.amin(0).tolist(), misfits.amax(0).tolist()
    most = columns // (8 * PATCH_PRICE) if columns <= 1 << 8 * COLUMN_BYTES else 0
    counts = [count for count in PATCH_COUNTS if count <= most]
    widths = range(1, largest.index(0) + 2)  # eight bits hold all
    return [PatchedFormat(bits=bits, patches=count) for bits in widths for count in counts if count >= least[bits - 1]]


def count_misfits(codes: UInt8[Tensor, "n in"]) -> Int32[Tensor, "n widths"]:
    """How many codes of each row do not fit into 1, 2, … 8 bits.

    Eight codes are counted at once, in the bytes of a 64-bit word: the highest bit of each tells whether it fits.
    """
    rows, columns = codes.shape
    found = torch.zeros(rows, WIDEST, dtype=torch.int32)
    height, width = max(1, CODES_AT_ONCE // max(1, columns)), 8 * 255  # more than 255 words would fill a byte
    for top, left in product(range(0, rows, height), range(0, columns, width)):
        part = codes[top : top + height, left : left + width]
        sizes = pad(_sizes(part), (0, -part.shape[1] % 8))
        for bits in range(1, int(sizes.max()).bit_length() + 1):
            marked = (sizes + (ENTROPY_ZERO - (1 << (bits - 1)))).view(torch.int64) >> 7 & _LOWEST_BITS
            beyond = marked.sum(1, keepdim=True).view(torch.uint8).sum(1)
            found[top : top + height, bits - 1] += beyond.int()
    return found


def narrow(
    codes: UInt8[Tensor, "n in"], format: PatchedFormat
) -> tuple[UInt8[Tensor, "n in"], Int64[Tensor, "n patches"], Int8[Tensor, "n patches"]]:
    """Codes of the format's width, counted from the least, the columns that have patches, and these.

    Raises:
        FormatError: a row needs more patches than the format has.
    """
    middle = 1 << (format.bits - 1)
    clamped = codes.clamp(ENTROPY_ZERO - middle, ENTROPY_ZERO + middle - 1)
    changed: Bool[Tensor, "n in"] = clamped != codes
    rows, columns = changed.nonzero(as_tuple=True)
    before = changed.sum(1).cumsum(0).roll(1)
    if len(before):
        before[0] = 0
    places = torch.arange(len(rows)) - before[rows]
    if len(places) and int(places.max()) >= format.patches:
        raise FormatError(f"{format}: a row needs {int(places.max()) + 1} patches.")
    at = torch.zeros(len(codes), format.patches, dtype=torch.int64)
    patches = torch.zeros(len(codes), format.patches, dtype=torch.int8)
    at[rows, places] = columns
    patches[rows, places] = (codes[rows, columns].short() - clamped[rows, columns].short()).to(torch.int8)
    return clamped.sub_(ENTROPY_ZERO - middle), at, patches


def widen(
    codes: UInt8[Tensor, "n in"], at: Int64[Tensor, "n patches"], patches: Int8[Tensor, "n patches"], bits: int
) -> UInt8[Tensor, "n in"]:
    """The codes of a byte each that `narrow` was given.

    Raises:
        FormatError: a patch belongs to no column, leads out of the byte, or two belong to one code.
    """
    if not bool((at < codes.shape[1]).all()):
        raise FormatError(f"patches behind the last of {codes.shape[1]} columns.")
    whole = codes + (ENTROPY_ZERO - (1 << (bits - 1)))
    asked = whole.gather(1, at).short() + patches
    whole.scatter_add_(1, at, patches.view(torch.uint8))
    if not bool(((whole.gather(1, at) == asked) | (patches == 0)).all()):
        raise FormatError("patches that lead out of a byte, or meet in one code.")
    return whole


def _sizes(codes: UInt8[Tensor, "n in"]) -> UInt8[Tensor, "n in"]:
    """The codes without their signs: 0 and -1 are 0, 1 and -2 are 1, and so on."""
    signed = (codes.contiguous() ^ ENTROPY_ZERO).view(torch.int8)
    return (signed ^ (signed >> 7)).view(torch.uint8)
