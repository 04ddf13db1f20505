"""Nested codes: one weight whose top bits are a weight of their own, for each of several widths.

A code of the widest width is cut after the widths of the narrower ones: the top `k` bits of all codes, the scales and
zero points, and a few bytes of refit are the `k`-bit weight. With `K` the widest width, and `z` the zero point,

    value = scale * ratio_k * (2 ** (K - k) * (code_k - (2 ** k - 1) / 2 + shift_k) + (2 ** K - 1) / 2 - z)

so a narrow code stands in the middle of the wide ones that it begins. `ratio_k`, one for the weight, and `shift_k`, one
for each row in sixteenths of that width's step, refit scales and zero points; both do nothing at the widest width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

from guidedq.errors import FormatError
from guidedq.quant.byte_counts import packed_width

LEAST_WIDTH, MOST_WIDTH = 2, 8
SHIFT_BITS = 3
"""Of a row's shift: two narrower widths cost rows of 64 weights a tenth of a bit, which is what nesting may cost."""
RATIO_BYTES = 2
GROUP_MULTIPLE = 32
"""Groups end where words of 32 columns end, so that kernels need not cut words."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NestedFormat:
    """Integer codes on a uniform grid, whose top bits are codes on coarser grids.

    Attributes:
        widths: Of the weights that are held, rising.
        group_size: Columns that share a scale and a zero point: a multiple of 32, or 0 for one group a row.
        precision: The width at which it is read, one of `widths`.
    """

    widths: tuple[int, ...]
    group_size: int = 64
    precision: int

    def __post_init__(self) -> None:
        check_widths(self.widths)
        if self.precision not in self.widths:
            raise FormatError(f"a nested weight of {widths_text(self.widths)} bits has no precision {self.precision}.")
        if self.group_size % GROUP_MULTIPLE or not 0 <= self.group_size <= 65535:
            raise FormatError(
                f"nested group sizes are 0 (per row) or multiples of {GROUP_MULTIPLE}, found {self.group_size}."
            )

    @property
    def bits(self) -> int:
        """Width of a code as it is read."""
        return self.precision

    @property
    def widest(self) -> int:
        """Width of a code as it is stored."""
        return self.widths[-1]

    @property
    def layers(self) -> tuple[int, ...]:
        """Bits that each width adds to the one before it."""
        return tuple(wide - narrow for narrow, wide in pairwise((0, *self.widths)))

    def at(self, precision: int) -> NestedFormat:
        """The same format, read at another width.

        Raises:
            FormatError: there is no such width.
        """
        return replace(self, precision=precision)

    def groups(self, columns: int) -> int:
        """Groups in a row, the short last one counted."""
        return 1 if self.group_size == 0 else -(-columns // self.group_size)

    def columns_per_group(self, columns: int) -> int:
        """Columns of a full group."""
        return columns if self.group_size == 0 else min(self.group_size, columns)

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row, at all widths: codes, scales and zero points, each layer padded to a byte."""
        groups = self.groups(columns)
        return sum(packed_width(columns, bits) for bits in self.layers) + 2 * groups + packed_width(groups, self.widest)

    def refit_bytes(self, rows: int) -> int:
        """Bytes of the ratios and shifts of so many rows."""
        return (len(self.widths) - 1) * (RATIO_BYTES + packed_width(rows, SHIFT_BITS))

    def __str__(self) -> str:
        return f"nested{{widths={widths_text(self.widths)} group-size={self.group_size} precision={self.precision}}}"


def parse_nested(text: str) -> NestedFormat | None:
    """Read a nested format from its text; `None` if it is no such text.

    Raises:
        FormatError: its numbers do not make a format.
    """
    match = re.fullmatch(r"nested\{widths=([0-9,]+) group-size=([0-9]+) precision=([0-9]+)\}", text)
    if match is None:
        return None
    return NestedFormat(widths=parse_widths(match[1]), group_size=int(match[2]), precision=int(match[3]))


def parse_widths(text: str) -> tuple[int, ...]:
    """Read `3,4,5`.

    Raises:
        FormatError: these are no two or more rising widths of 2 to 8 bits.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and word.isascii() for word in words):
        raise FormatError(f"nested widths {text!r}: expected whole numbers of bits, such as 3,4,5.")
    widths = tuple(map(int, words))
    check_widths(widths)
    return widths


def check_widths(widths: Sequence[int]) -> None:
    """Refuse what cannot be nested.

    Raises:
        FormatError: these are no two or more rising widths of 2 to 8 bits.
    """
    spoken = widths_text(widths)
    if len(widths) < 2:
        raise FormatError(f"nested widths {spoken}: expected two or more, such as 3,4,5. For one, give a --budget.")
    if not all(LEAST_WIDTH <= width <= MOST_WIDTH for width in widths):
        raise FormatError(f"nested widths {spoken}: each is {LEAST_WIDTH} to {MOST_WIDTH} bits.")
    if any(wide <= narrow for narrow, wide in pairwise(widths)):
        raise FormatError(f"nested widths {spoken}: expected them rising, each once, such as 3,4,5.")


def widths_text(widths: Sequence[int]) -> str:
    """The widths as the user writes them."""
    return ",".join(map(str, widths))
