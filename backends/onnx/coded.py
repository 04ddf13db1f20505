"""Codes stored by their entropy, in Rice codes (see `quant/rice.py`), and the calls that unpack them at load.

The ones of the unary parts are found by TopK, which the runtime folds away like everything else that unpacks. Bits
and low parts are stored as codes of so many bits are (see `layout.py`).
"""

from __future__ import annotations

import numpy as np
import torch

from guidedq.quant.exponents import FRACTIONS, PARTS, POWERS
from guidedq.quant.rice import folded, rice_parameter, unary, unfolding

from .layout import BYTE_BITS, Stream
from .patch import Patch
from .settings import Settings
from .streams import CodedRows, part_constants, store_parts

COUNTED_PARAMETER = 1
"""Low bits while bytes are only counted: with none a few bytes less would be needed."""


def store_codes(patch: Patch, rows: CodedRows, columns: int, settings: Settings) -> str:
    """Store the codes of all rows; gives the name of the flat codes, one a byte."""
    weights = rows.count * columns
    low, numbers = COUNTED_PARAMETER, torch.zeros(0, dtype=torch.int64)
    unary_bits = max(1, BYTE_BITS * rows.count * rows.format.code_bytes(columns) - weights * low)
    if rows.segment is not None:
        low, numbers = rice_parameter(rows.segment.codes), folded(rows.segment.codes.flatten())
        unary_bits = int((numbers >> low).sum()) + weights
    highs = _stream(1, unary_bits)
    bits = patch.store(np.uint8, (highs.part_bytes(1, 1),), lambda: _packed(highs, unary(numbers >> low).numpy())[0])
    count = patch.store(np.int64, (1,), lambda: np.array([weights], dtype=np.int64), per_row=False)
    inputs = [bits, *part_constants(patch, highs, 1, settings), count]
    table = patch.constant(unfolding().numpy())
    if not low:
        return patch.call("Unary", [*inputs, table])
    lows = _stream(low, weights)
    stored = store_parts(patch, lows, 1, lambda: _packed(lows, _lows(numbers, low)), settings)
    factor = patch.constant(np.array(2**low, dtype=np.int32))
    return patch.call("Rice", [*inputs, table, stored, factor])


def store_exponents(patch: Patch, rows: CodedRows) -> str:
    """Store the rows' scales; gives the name of the float32 scales `[n, 1]`."""

    def exponents() -> np.ndarray:
        assert rows.segment is not None
        return rows.segment.row_exponents.numpy()[:, None]

    stored = patch.store(np.uint8, (rows.count, 1), exponents)
    shift = (PARTS - 1).bit_length()
    shifts = [patch.constant(np.array(bits, dtype=np.uint8)) for bits in (shift, BYTE_BITS - shift)]
    return patch.call("Powers", [stored, *shifts, patch.constant(FRACTIONS.numpy()), patch.constant(POWERS.numpy())])


def _lows(numbers: torch.Tensor, low: int) -> np.ndarray:
    return (numbers & (2**low - 1)).numpy().astype(np.uint8)


def _stream(bits: int, values: int) -> Stream:
    """Values of so many bits, to be unpacked to a byte each."""
    return Stream(bits=bits, container=BYTE_BITS, columns=values, zero_points=0)


def _packed(stream: Stream, values: np.ndarray) -> tuple[np.ndarray, ...]:
    return stream.pack(values[None], values[None, :0])
